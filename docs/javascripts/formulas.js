// Formulas as MathML, which browsers draw by themselves: of TeX what these pages use, and no more.

const SIGNS = {
  lambda: "λ", Lambda: "Λ", nabla: "∇", theta: "θ", mu: "μ", partial: "∂", Omega: "Ω", varepsilon: "ε", rho: "ρ",
  top: "⊤", sum: "∑", lVert: "‖", rVert: "‖", otimes: "⊗", le: "≤", leftarrow: "←", preceq: "⪯", Phi: "Φ", ne: "≠",
  ",": " ", ";": " ", qquad: "    ", in: "∈", cdot: "·", ell: "ℓ", epsilon: "ε", approx: "≈", times: "×", mid: "|",
};
const WORDS = new Set(["log", "arg", "min", "max", "exp", "cos"]);
const HATS = { hat: "^", bar: "¯", tilde: "~" };

function node(tag, ...children) {
  const made = document.createElementNS("http://www.w3.org/1998/Math/MathML", tag);
  made.append(...children);
  return made;
}

function tokens(text) {
  return text.match(/\\[a-zA-Z]+|\\.|[0-9.]+|[^\s]/g) ?? [];
}

// One thing: a letter, a number, a sign, a group in braces, a command with what it takes.
function atom(rest) {
  const token = rest.shift();
  if (token === "{") return row(rest, "}");
  const name = token.startsWith("\\") ? token.slice(1) : null;
  if (name === "frac") return node("mfrac", atom(rest), atom(rest));
  if (name === "sqrt") return node("msqrt", atom(rest));
  if (name === "mathtt" || name === "text" || name === "mathrm") {
    const inside = [];
    rest.shift();
    while (rest.length && rest[0] !== "}") inside.push(rest.shift());
    rest.shift();
    return node("mtext", inside.join(""));
  }
  if (name in HATS) return node("mover", atom(rest), node("mo", HATS[name]));
  if (name === "left" || name === "right") return node("mo", rest.shift());
  if (WORDS.has(name)) return node("mi", name);
  if (name !== null) return node(/[a-zA-Z]/.test(name) && /[λΛθμεΩρΦℓ]/.test(SIGNS[name] ?? "") ? "mi" : "mo", SIGNS[name] ?? name);
  if (/^[0-9.]+$/.test(token)) return node("mn", token);
  const letter = node(/\p{L}/u.test(token) ? "mi" : "mo", token);
  if ("()[]|".includes(token)) letter.setAttribute("stretchy", "false");
  return letter;
}

function scripts(base, rest) {
  let [below, above] = [null, null];
  while (rest[0] === "_" || rest[0] === "^") {
    if (rest.shift() === "_") below = atom(rest);
    else above = atom(rest);
  }
  if (below && above) return node("msubsup", base, below, above);
  if (below) return node("msub", base, below);
  return above ? node("msup", base, above) : base;
}

function row(rest, end) {
  const made = node("mrow");
  while (rest.length && rest[0] !== end) made.append(scripts(atom(rest), rest));
  if (end) rest.shift();
  return made;
}

function draw() {
  for (const place of document.querySelectorAll(".arithmatex")) {
    const text = place.textContent.trim();
    const found = text.match(/^\\[([]([\s\S]*)\\[)\]]$/);
    if (!found) continue;
    const formula = node("math", row(tokens(found[1])));
    if (text.startsWith("\\[")) formula.setAttribute("display", "block");
    formula.setAttribute("aria-label", found[1]);
    place.replaceChildren(formula);
  }
}

draw();
