from .load import Generator as Generator
from .load import Load as Load
from .traffic import System as System
from .traffic import Traffic as Traffic
from .traffic import http_bytes as http_bytes
from .traffic import make_traffic as make_traffic
from .traffic import oip_body as oip_body
from .wire import status_of as status_of
