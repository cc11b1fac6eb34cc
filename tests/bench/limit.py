"""Plain nginx on the same disk: what nothing that is built on nginx can beat."""

import os
from dataclasses import dataclass

from service.run import programs
from tests.bench.contenders import Contender

LIMIT = """
{user}
daemon off;
pid nginx.pid;
error_log stderr warn;
worker_processes {workers};
events {{ worker_connections 1024; }}
http {{
    access_log off;
    default_type application/octet-stream;
    client_body_temp_path body;
    proxy_temp_path unused; fastcgi_temp_path unused; uwsgi_temp_path unused; scgi_temp_path unused;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    keepalive_timeout 75s;
    keepalive_requests 10000;
    client_max_body_size 0;
    client_body_buffer_size 256k;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            root files;
            dav_methods PUT;
            dav_access user:rw;
        }}
    }}
}}
"""


@dataclass
class Limit(Contender):
    """Plain nginx: static files by sendfile, uploads by its own DAV; with as many processes as that of the service."""

    def command(self) -> list[str]:
        """The same program as the service's."""
        found = programs.find_or_install("nginx")
        if found is None:
            raise RuntimeError("there is no nginx to be had, and so no limit")
        self._libraries = dict(found.environment)
        return [str(found.path), "-p", f"{self.root}/", "-e", "stderr", "-c", "nginx.conf"]

    def environment(self) -> dict[str, str]:
        """With its libraries, if it was unpacked."""
        return {**os.environ, **self._libraries}

    def prepare(self) -> None:
        """Write its configuration."""
        super().prepare()
        (self.root / "nginx.conf").write_text(LIMIT.format(
            user="user root;" if os.geteuid() == 0 else "", workers=os.cpu_count() or 1, port=self.port),
            encoding="utf-8")
