from .blocks import Gradients as Gradients
from .found_layouts import gradient_layout as gradient_layout
from .layouts import DenseLayout as DenseLayout
from .layouts import GradientLayout as GradientLayout
from .layouts import LinearLayout as LinearLayout
from .per_sample import per_sample_gradients as per_sample_gradients
