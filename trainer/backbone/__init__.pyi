from .load import drop_classifier as drop_classifier
from .load import load_backbone as load_backbone
from .paper_resnets import PAPER_NETS as PAPER_NETS
from .paper_resnets import paper_net as paper_net
from .published import known_names as known_names
from .tracing import name_norms as name_norms
from .tracing import op_name as op_name
from .tracing import trace as trace
