"""The tests of this project; an install in place leaves the modules of a plain folder `tests` elsewhere importable."""

from pkgutil import extend_path

__path__ = extend_path(__path__, __name__)
