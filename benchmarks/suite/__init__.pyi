from .catalogue import TABLES as TABLES
from .catalogue import Table as Table
from .catalogue import find_tables as find_tables
from .history import run_table as run_table
from .regression import CASES as CASES
from .regression import MOST as MOST
from .regression import check_against_checkout as check_against_checkout
from .regression import regressed as regressed
