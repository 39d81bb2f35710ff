"""Every family of losses, by what their modules put out: one vector a row, or one a position.

A family is `(draw, width, positions, lengths)` → `Loss`.
"""

from adversary import class_losses, number_losses, own_losses, position_losses

VECTORS = {
    f.__name__: f
    for f in (
        class_losses.classes, class_losses.smoothed_classes, class_losses.class_weights,
        class_losses.hidden_class_weights, class_losses.probabilities, class_losses.odd_labels,
        number_losses.regression, number_losses.robust, number_losses.binary_labels,
        number_losses.weighted_binary, number_losses.counts, own_losses.own_rows,
        own_losses.gaussian, own_losses.sums, own_losses.coupled,
    )
}  # fmt: skip
POSITIONS = {
    f.__name__: f
    for f in (
        position_losses.labelled_positions, position_losses.weighted_positions,
        position_losses.own_positions, position_losses.numbers_at_positions,
    )
}  # fmt: skip
