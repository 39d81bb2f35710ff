"""What the pictures on an asset's page show, and why one looks at them."""

WHY = {
    "spectrum": (
        "Eigenvalues of the curvature, with the dampings as lines. Directions below a line "
        "are held by the damping more than by the data, so that another λ is another answer "
        "there; negative ones larger than λ would turn the sign of an influence."
    ),
    "convergence": (
        "Residuals of the test rows' solves, sorted; how many steps they took; how residuals fell. "
        "A row above the tolerance has factors that cannot be trusted; many steps say that the "
        "system is badly conditioned."
    ),
    "residuals": (
        "How exactly each test row's system is solved: the residual relative to its right- "
        "hand side. A large one is an error of at least that size in the row's influences."
    ),
    "histogram": (
        "How the influences are spread. Most pairs hardly matter; the tails are the rows to "
        "look at. A wide one-sided tail is one row that rules many predictions."
    ),
    "strongest": (
        "Some test rows, with the training rows that help them most and harm them most. Rows "
        "of the same class should help; one that harms its own class is a suspect."
    ),
    "example": (
        "One pair: what more of each feature of the training row does to the test row's loss. "
        "Blue helps, red harms: the part of the row that the influence comes from."
    ),
    "agreement": (
        "Predicted change of test losses against that of refits, a dot a pair. On the line "
        "the values can be trusted, in its order the ranks; a slope above 1 is the row's own "
        "curvature."
    ),
    "scores": (
        "How well influences rank models that were fitted to random subsets (Spearman), with "
        "95 % intervals. A method that is no better than the baselines says nothing here."
    ),
    "detection": (
        "Share of labels flipped on purpose that are found, against rows looked at. The "
        "earlier a curve rises, the fewer rows have to be looked at in data whose errors "
        "nobody knows."
    ),
}
