from .base import Source as Source
from .read import check_read as check_read
from .read import files as files
from .read import pictures as pictures
from .read import read_source as read_source
