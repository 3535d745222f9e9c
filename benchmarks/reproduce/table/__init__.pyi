from .accounting import figures_of as figures_of
from .measured import measured_accuracy as measured_accuracy
from .table import listed_rows as listed_rows
from .table import reproduced_table as reproduced_table
