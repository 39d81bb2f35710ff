from .split_rows import SplitRows as SplitRows
from .splits import check_precisions as check_precisions
from .splits import load_split as load_split
from .splits import load_splits as load_splits
