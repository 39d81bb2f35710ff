"""Known vulnerabilities of the pinned dependencies: `make audit`.

pip-audit asks PyPI, or with `make audit SERVICE=osv` the OSV database, about every line of
constraints.txt. What a service does not know was not audited, and is no clean result: the command
ends with 0 only when every dependency was looked up and none is known to be vulnerable, with 1 when
one is, and with 2 when some or all could not be looked up.
"""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VULNERABLE, NOT_AUDITED = 1, 2


def main(service: str = "pypi") -> int:
    """Ask, print what was found, and say how it ends."""
    command = [
        *(sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt")),
        *("--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"),
        *("--vulnerability-service", service, "--timeout", "15"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (done.stderr.strip().splitlines() or ["pip-audit said nothing"])[-1]
        print(f"nothing was audited: the service {service} cannot be reached, or refuses.\n{last}")
        return NOT_AUDITED
    return verdict(found, service)


def verdict(found: list[dict], service: str) -> int:
    """What pip-audit's list says, as lines and an exit code."""
    known = [each for each in found if each.get("vulns")]
    skipped = [each["name"] for each in found if "skip_reason" in each]
    for each in known:
        for vulnerability in each["vulns"]:
            mended = ", ".join(vulnerability["fix_versions"]) or "no release yet"
            print(f"{each['name']} {each['version']}: {vulnerability['id']}, mended in {mended}")
    audited = len(found) - len(skipped)
    print(f"{audited} of {len(found)} dependencies were audited by {service}, {len(known)} have "
          "known vulnerabilities")  # fmt: skip
    if skipped:
        print(f"not audited, since {service} does not answer for them: {', '.join(skipped)}")
    if known:
        return VULNERABLE
    return NOT_AUDITED if skipped or not found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
