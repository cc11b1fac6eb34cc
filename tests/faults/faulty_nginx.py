"""The service with an nginx that is set up otherwise.

NGINX_MISTAKE has what stands in its configuration, `=>`, and what does instead.
"""

import os
import sys
from typing import Any

from service.__main__ import main
from service.run import nginx


def install() -> None:
    """Put the mistake into every configuration that is rendered from now on."""
    render, (right, wrong) = nginx.render, os.environ["NGINX_MISTAKE"].split("=>")

    def render_wrong(*given: Any, **more: Any) -> str:
        text = render(*given, **more)
        assert right in text, f"there is no {right!r}"
        return text.replace(right, wrong)

    nginx.render = render_wrong


if __name__ == "__main__":
    install()
    sys.exit(main(sys.argv[1:]))
