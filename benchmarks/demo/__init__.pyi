from .images import write_demo_domains as write_demo_domains
from .run import run_demo as run_demo
