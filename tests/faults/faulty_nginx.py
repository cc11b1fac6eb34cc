"""The service with an nginx that is set up otherwise.

NGINX_MISTAKE has, in each line, what stands in its configuration, `=>`, and what does instead.
"""

import os
import sys
from typing import Any

from service.__main__ import main
from service.run import nginx


def install() -> None:
    """Put the mistakes into every configuration that is rendered from now on."""
    render, lines = nginx.render, os.environ["NGINX_MISTAKE"].splitlines()

    def render_wrong(*given: Any, **more: Any) -> str:
        text = render(*given, **more)
        for right, wrong in (line.split("=>") for line in lines):
            assert right in text, f"there is no {right!r}"
            text = text.replace(right, wrong)
        return text

    nginx.render = render_wrong


if __name__ == "__main__":
    install()
    sys.exit(main(sys.argv[1:]))
