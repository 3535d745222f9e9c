from .found import domain_parts as domain_parts
from .found import found_domains as found_domains
from .template import foreign_to_init as foreign_to_init
from .template import run_file_text as run_file_text
