from .rewriter import FOLD as FOLD
from .rewriter import BlockedGraph as BlockedGraph
from .rewriter import BlockedRewriter as BlockedRewriter
from .rewriter import layout_probe as layout_probe
