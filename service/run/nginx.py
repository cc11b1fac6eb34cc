"""nginx: its configuration, rendered from nginx/, and its start.

The same text serves `make run` and the nginx of a container: of the data root it holds only the workers' sockets.
"""

import os
import re
import resource
import secrets
import shutil
import signal
import tempfile
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path

from service.config import Config
from service.run import processes, programs
from service.run.processes import StartError
from service.security.addresses import AddressSigner
from service.security.media import KINDS, SMALL
from service.storage.base import ASIDE_BYTES

NJS_PACKAGE = "libnginx-mod-http-js"
NJS_MODULE = "usr/lib/nginx/modules/ngx_http_js_module.so"
SCRIPT = "decisions.js"
FOLDER = Path(__file__).parents[2] / "nginx"
TEMPLATE = "nginx.conf.template"
FRAME_BYTES = 2**20  # what a form adds to the bytes of its file, at most
MAX_OPEN_FILES = 16384
CONNECTIONS_SHARE = 4  # of all files: each download takes two, its file a third, and there are some to spare
KEPT_OPEN_SHARE = 8  # of all files: small blobs; and so many remembered decisions
# at the same time, of those that are too large for memory
UPLOADS_PER_NETWORK = 256
LINKS_SHARE = 2  # through all links of an account, so many times as many as an account may have itself
# of the answers below, to one network at the same time
LONG_ANSWERS_PER_NETWORK = 64
LONG_ANSWERS = ("/file/list", "/file/trash", "/file/versions", "/file/batch", "/file/link", "/auth/audit",
                "/openapi.json", "/docs", "/docs/")  # both: or nginx would send whoever asks for the one to the other
# below the folder `memory`
GENERATIONS = "generations"
DECISIONS = "decisions"
STOP_STEPS = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

# The answers that a worker may give to an upload before it begins.
REFUSALS = (400, 401, 403, 404, 405, 409, 411, 412, 413, 415, 422, 429, 500, 503, 507)

# problem+json (RFC 9457) of what nginx itself has to say; the variables are those of nginx/problem_maps.conf
PROBLEM = ('{"type":"about:blank","title":"$problem_title","status":$status,"detail":"$problem_detail",'
           '"code":"$problem_code","request_id":"$request_id"}')


def _quote(text: str | Path) -> str:
    """A string of nginx's language."""
    escaped = str(text).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _listen(config: Config) -> str:
    if not re.fullmatch(r"[\w.:*-]+", config.host):
        raise StartError(f"nginx cannot listen on the address {config.host!r}")
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{host}:{config.port}"


def _count_open_files() -> int:
    """How many files one process of nginx may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)


def _render_single_workers(sockets: Sequence[Path]) -> str:
    """An upstream for each worker, and a fair choice of one, for requests which must not be sent twice.

    No connection is kept: when one that was kept breaks, nginx sends its request again, even to an only server.
    """
    lines = []
    for number, socket in enumerate(sockets):
        lines += [f"upstream worker_{number} {{", f"    server {_quote(f'unix:{socket}')} max_fails=0;", "}"]
    share = 100 / len(sockets)
    lines.append("split_clients $request_id $any_worker {")
    lines += [f"    {share:.2f}% worker_{number};" for number in range(len(sockets) - 1)]
    lines += [f"    * worker_{len(sockets) - 1};", "}"]
    return "\n".join(lines)


def _render_refusals() -> str:
    """An address for each status that an upload may be refused with."""
    return "\n".join(f"location = /_refuse/{status} {{ # {HTTPStatus(status).phrase}\n"
                     "    {{include internal.conf}}\n"
                     f"    error_page 418 ={status} /_refused;\n"
                     "    return 418;\n"
                     "}" for status in REFUSALS)


def _render_long_answers() -> str:
    """A location for each address, or folder of addresses, whose answers may be long."""
    return "\n".join(f"location {address if address.endswith('/') else f'= {address}'} {{\n"
                     "    {{include long_answer.conf}}\n"
                     "}" for address in LONG_ANSWERS)


def _render_kinds(what: str) -> str:
    """An address for each media type that files may have, which are `signed` or `decided`; large ones stay closed."""
    lines = []
    for kind, content_type in KINDS.items():
        lines += [f"location /_{what}/{kind}/ {{",
                  f"    {{{{include {what}.conf}}}}",
                  *([] if kind.startswith(SMALL) else ["    open_file_cache off;"]),
                  *(["    {{include internal.conf}}"] if what == "signed" else []),  # the others may be logged
                  "    {{include headers.conf}}",
                  f"    default_type {_quote(content_type)};",
                  "}"]
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Njs:
    """What nginx needs to remember decisions: its module for JavaScript, and where it keeps them.

    `memory`: a folder as nginx is to call it, absolute or as seen from its prefix.
    """

    module: Path
    memory: str


def render_script(memory: str) -> str:
    """The script that the configuration names, for the file SCRIPT beside it."""
    if not re.fullmatch(r"[\w./-]+", memory):
        raise StartError(f"nginx's script cannot name the folder {memory!r}")
    return _fill((FOLDER / SCRIPT).read_text(encoding="utf-8"), {"generations": f"{memory}/{GENERATIONS}"})


def render(config: Config, sockets: Sequence[Path], *, as_root: bool, signer: AddressSigner | None = None,
           njs: Njs | None = None) -> str:
    """The whole configuration; `sockets` are the workers', `as_root` whether nginx will run as root.

    It holds what signatures are made with, so nobody else may read it.  Without `signer` no signed address is right,
    without `njs` a worker is asked for each download.
    """
    signer = signer or AddressSigner(secrets.token_hex(32))
    values = {
        "user": "user root; # the workers' uid: spooled bodies have mode 0600" if as_root else "",
        "open_files": str(_count_open_files()),
        "connections": str(_count_open_files() // CONNECTIONS_SHARE),
        "kept_open": str(_count_open_files() // KEPT_OPEN_SHARE),
        "nginx_workers": str(min(config.workers, os.cpu_count() or 1)),
        "servers": "\n".join(f"server {_quote(f'unix:{socket}')} max_fails=0;" for socket in sockets),
        "single_workers": _render_single_workers(sockets),
        "refusals": _render_refusals(),
        "signed_expression": signer.expression,
        "signed_kinds": _render_kinds("signed"),
        "decided_kinds": _render_kinds("decided"),
        "load_njs": f"load_module {_quote(njs.module)};" if njs else "",
        "decisions_http": "{{include decisions_http.conf}}" if njs else "",
        "decisions_server": "{{include decisions.conf}}" if njs else "",
        "decisions": _quote(f"{njs.memory}/{DECISIONS}") if njs else "",
        "listen": _listen(config),
        "trusted_proxies": "\n".join(f"set_real_ip_from {network};" for network in config.proxy_networks),
        "uploads_per_network": str(UPLOADS_PER_NETWORK),
        "uploads_per_account": str(config.uploads_per_account),
        "uploads_per_links": str(LINKS_SHARE * config.uploads_per_account),
        "long_answers": _render_long_answers(),
        "long_answers_per_network": str(LONG_ANSWERS_PER_NETWORK),
        "aside_bytes": str(ASIDE_BYTES),
        "problem": PROBLEM,
        "max_body_size": str(config.max_upload_size + FRAME_BYTES),
    }
    return _fill((FOLDER / TEMPLATE).read_text(encoding="utf-8").partition("\n\n")[2], values)


def _fill(text: str, values: Mapping[str, str]) -> str:
    """Replace each {{name}}, and each {{include file}}, which stands alone and gives its lines its indent."""
    def included(match: re.Match[str]) -> str:
        lines = (FOLDER / match[2]).read_text(encoding="utf-8").rstrip("\n").split("\n")
        return "\n".join(match[1] + line for line in lines)

    def valued(match: re.Match[str]) -> str:
        return values[match[2]].replace("\n", "\n" + match[1])

    while "{{" in text:  # values have includes, and included files have values
        text = re.sub(r"( *)\{\{(\w+)\}\}", lambda match: match[1] + valued(match), text)
        text = re.sub(r"^( *)\{\{include ([\w.]+)\}\}$", included, text, flags=re.MULTILINE)
    return text


def check_data_root(root: Path) -> None:
    """StartError for a name that would mean something to nginx or break a header."""
    if re.search(r'[$"\'\\\x00-\x1f\x7f]', str(root)):
        raise StartError(f"nginx cannot work in {str(root)!r}: choose a data root without $, quotes, backslashes and "
                         "control characters, or set FILE_STORAGE_NGINX=off")


def make_prefix(spool: Path) -> Path:
    """A new folder for one start of nginx."""
    prefix = spool / uuid.uuid4().hex
    prefix.mkdir(mode=0o700)
    return prefix


def command(program: Path, prefix: Path, configuration: Path) -> list[str]:
    """nginx in the foreground; it ends at SIGQUIT (when its requests are done) or SIGTERM (at once).

    It has to be started in its prefix, for `stop_leftovers` to find it.
    """
    return [str(program), "-p", f"{prefix}/", "-c", str(configuration), "-e", "stderr"]


def check_configuration(program: programs.Program, prefix: Path, configuration: Path) -> None:
    """StartError with what `nginx -t` has to say against it."""
    processes.run([*command(program.path, prefix, configuration), "-t", "-q"],
                  environment={**os.environ, **program.environment})


def stop_leftovers(spool: Path) -> None:
    """End every nginx of this data root that has lost its master or its supervisor, and remove their folders.

    The master's death does not end its processes, and they would hold the port.  Bodies in those folders were never
    answered for; one that a worker is about to claim belongs to a client whose connection is gone.
    """
    for prefix in spool.iterdir():
        if prefix.is_symlink() or not prefix.is_dir():
            continue
        if not processes.stop_all(partial(processes.find_working_in, prefix, "nginx"), STOP_STEPS):
            raise StartError(f"an nginx that was left running in {prefix} does not end")
        shutil.rmtree(prefix, ignore_errors=True)


def find_njs(program: programs.Program, say: Callable[[str], None] = lambda line: None) -> programs.Program | None:
    """The same program with a module for JavaScript that it takes; None if there is none to be had."""
    beside = Path(f"/{NJS_MODULE}")
    if found := _with_module(program, beside, {}):
        return found
    if module := programs.find_or_unpack(NJS_PACKAGE, NJS_MODULE, say=say):
        return _with_module(program, module, programs.libraries_of(NJS_PACKAGE))
    return None


def _with_module(program: programs.Program, module: Path, libraries: Mapping[str, str]) -> programs.Program | None:
    """The program with the module, if it is there and was made for this nginx."""
    if not module.exists():
        return None
    found = replace(program, environment={**libraries, **program.environment}, njs=module)
    with tempfile.TemporaryDirectory() as folder:
        configuration = Path(folder) / "nginx.conf"
        configuration.write_text(f"load_module {_quote(module)}; pid nginx.pid; error_log stderr; events {{}}\n")
        try:
            check_configuration(found, Path(folder), configuration)
        except StartError:
            return None
    return found


def find_or_install(say: Callable[[str], None] = lambda line: None) -> programs.Program | None:
    """An nginx that runs on this machine, installed if need be; None if there is none to be had."""
    return programs.find_or_install("nginx", say=say)
