from .splits import SplitRows as SplitRows
from .splits import check_precisions as check_precisions
from .splits import load_split as load_split
from .splits import load_splits as load_splits
from .splits import makes_rows as makes_rows
