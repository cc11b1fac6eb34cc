"""The text of nginx's configuration: that it is accepted, and that it keeps our rules."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from service.config import Config
from service.run import nginx
from service.run.processes import StartError
from service.run.programs import Program
from service.security.media import KINDS, SMALL

PER_REQUEST = {"X-File", "X-Body-Length", "X-Body-Transfer-Encoding", "X-Original-Method", "X-Original-Uri"}

LONG = {"= /file/list", "= /file/trash", "= /file/versions", "= /file/batch", "= /file/link", "= /auth/audit",
        "= /openapi.json", "= /docs", "/docs/"}

NJS = nginx.Njs(Path(f"/{nginx.NJS_MODULE}"), "../../run/memory")


def render(workers: int = 2, host: str = "127.0.0.1", njs: nginx.Njs | None = NJS, proxies: str | None = None) -> str:
    sockets = [Path(f"/run/some where/worker-{number}.sock") for number in range(workers)]
    return nginx.render(Config(host=host, trusted_proxies=proxies), sockets, as_root=os.geteuid() == 0, njs=njs)


def locations() -> dict[str, str]:
    """Each location of the server and its lines."""
    found = re.findall(r"^ {8}location ([^{]+) \{.*?$\n(.*?)^ {8}\}$", render(), re.MULTILINE | re.DOTALL)
    assert len(found) == len(re.findall(r"^\s*location ", render(), re.MULTILINE))
    return dict(found)


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost", "*"])
def test_nginx_accepts_it(nginx_program: Program, tmp_path: Path, workers: int, host: str) -> None:
    for name in ("spool", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / "nginx.conf").write_text(render(workers, host, njs=None))
    prefix = nginx.make_prefix(tmp_path / "spool")
    nginx.check_configuration(nginx_program, prefix, tmp_path / "run" / "nginx.conf")
    assert {entry.name for entry in tmp_path.iterdir()} == {"spool", "run"}


def test_nginx_accepts_it_with_javascript(nginx_program: Program, tmp_path: Path) -> None:
    program = nginx.find_njs(nginx_program)
    assert program is not None and program.njs is not None
    for name in ("spool", "run", "run/memory"):
        (tmp_path / name).mkdir()
    (tmp_path / "run" / nginx.SCRIPT).write_text(nginx.render_script(NJS.memory))
    (tmp_path / "run" / "nginx.conf").write_text(render(njs=nginx.Njs(program.njs, NJS.memory)))
    nginx.check_configuration(program, nginx.make_prefix(tmp_path / "spool"), tmp_path / "run" / "nginx.conf")


def test_module_of_another_nginx_is_not_taken(nginx_program: Program, tmp_path: Path) -> None:
    module = tmp_path / "module.so"
    module.write_bytes(b"no module at all")
    assert nginx._with_module(nginx_program, module, {}) is None


@pytest.mark.parametrize("memory", ["/dev/shm/a'b", "/a b", "/a\\b", "/a\n"])
def test_folder_that_the_script_would_misread_is_refused(memory: str) -> None:
    with pytest.raises(StartError, match="cannot name the folder"):
        nginx.render_script(memory)


def test_wrong_configuration_is_told(nginx_program: Program, tmp_path: Path) -> None:
    (tmp_path / "nginx.conf").write_text("nonsense;")
    with pytest.raises(StartError, match='unknown directive "nonsense"'):
        nginx.check_configuration(nginx_program, tmp_path, tmp_path / "nginx.conf")


def test_no_placeholder_is_left() -> None:
    for text in (render(), render(njs=None), nginx.render_script(NJS.memory)):
        assert "{{" not in text and "}}" not in text


def test_neither_regular_expressions_nor_rewriting() -> None:
    text = re.sub(r"#.*", "", render())
    assert not re.search(r"location\s+[~^]|location\s+\^~", text)
    assert not re.search(r"\b(rewrite|if|slice|dav_methods|set|root|try_files)\s", text)
    [expression] = re.findall(r'"~(.*)" @upload_small;', text)  # without captures, and of the length alone
    assert not re.search(r"\((?!\?:)", expression)
    assert text.count("~") == 3 == 1 + text.partition("map $binary_remote_addr ")[2].partition("}\n")[0].count('"~')
    small = re.compile(expression)
    for length in ("", "0", "9", "4096", "9999", "59999", "60000", "65535", "65536"):
        assert small.search(f"{length} "), length
    for length in ("65537", "65540", "65600", "66000", "70000", "100000", "1e3", "-1", "+1", "4096x", "0x10", " 1"):
        assert not small.search(f"{length} "), length
    for other in ("chunked", "100-continue", "chunked100-continue"):
        assert not small.search(f" {other}") and not small.search(f"5 {other}")


def test_alias_and_its_location_end_in_a_slash() -> None:
    aliases = {name: body for name, body in locations().items() if "alias " in body}
    assert set(aliases) == {
        "/_blobs/", "/_linked/", "/_spool/", *(f"/_{what}/{kind}/" for what in ("signed", "decided") for kind in KINDS)}
    for name, body in aliases.items():
        assert name.endswith("/")
        assert re.findall(r"alias (\S+);", body) == ["body/" if name == "/_spool/" else "../../blobs/"]


def test_only_small_blobs_are_kept_open_and_descriptors_suffice() -> None:
    for name, body in locations().items():
        if "alias " in body:
            assert body.count("open_file_cache off;") == (SMALL not in name), name
    numbers = {name: [int(number) for number in re.findall(rf"\b{name}(?: max=| )([0-9]+)", render())]
               for name in ("open_file_cache", "worker_connections", "worker_rlimit_nofile")}
    # one for small blobs, one for decisions; a connection may have a second one to a worker, and needs a file for each
    assert len(numbers["open_file_cache"]) == 2
    [connections], [files] = numbers["worker_connections"], numbers["worker_rlimit_nofile"]
    assert sum(numbers["open_file_cache"]) + 2 * connections < files


def test_every_proxied_location_says_everything_to_the_worker_once() -> None:
    common = set(re.findall(r"proxy_set_header (\S+)", (nginx.FOLDER / "proxy.conf").read_text()))
    proxied = {name: body for name, body in locations().items() if "proxy_pass " in body}
    assert set(proxied) == {"/", "/auth/", "@upload_small", "@upload_admitted", "= /_preflight", "= /_decide",
                            "@download_asked", "@link_visit", "@link_admitted", *LONG}
    for body in proxied.values():
        names = re.findall(r"proxy_set_header (\S+)", body)
        assert len(set(names)) == len(names)
        assert set(names) - {"Content-Length"} == common | PER_REQUEST


def test_only_uploads_carry_the_name_of_a_file() -> None:
    assert [name for name, body in locations().items() if "X-File $" in body] == ["@upload_admitted", "@link_admitted"]


def test_only_long_answers_are_put_aside_and_those_are_counted() -> None:
    assert render().count("proxy_max_temp_file_size 0;") == 1
    aside = {name: body for name, body in locations().items() if "proxy_max_temp_file_size " in body}
    assert set(aside) == LONG
    for body in aside.values():
        assert "limit_conn long_answers 64;" in body and "limit_conn_status 429;" in body
        assert f"proxy_max_temp_file_size {2**27};" in body


def test_location_with_a_header_of_its_own_repeats_the_common_ones() -> None:
    common = (nginx.FOLDER / "headers.conf").read_text().count("add_header")
    for name, body in locations().items():
        if "add_header" in body:
            assert body.count("add_header X-Request-Id") == body.count("add_header X-Content-Type-Options") == 1
    assert common == 2


def test_own_page_stands_before_the_common_one() -> None:
    for name, body in locations().items():
        targets: dict[str, list[str]] = {}
        for statuses, target in re.findall(r"error_page ([0-9 ]+) (=[^;]*);", body):
            for status in statuses.split():
                targets.setdefault(status, []).append(target)
        for status, pages in targets.items():  # nginx takes the first
            assert len(pages) == 1 or pages[0] != f"={status} /_problem", (name, status)


def test_every_internal_address_is_internal() -> None:
    for name, body in locations().items():
        if name.removeprefix("= ").startswith("/_") and name != "/_":
            assert "internal;" in body
            assert "client_max_body_size 0;" in body


def test_nothing_is_logged_where_an_address_may_be_a_permission() -> None:
    """And everything elsewhere: what is reached from accounts' addresses alone."""
    logged = {name for name, body in locations().items() if "error_log /dev/null emerg;" not in body}
    assert {name for name in logged if not name.startswith("/_decided/")} == LONG | {
        "/", "/auth/", "= /auth", "= /file", "@upload_small", "@upload_large", "@upload_admitted", "/_blobs/", "/_",
        "= /metrics", "/metrics/", "= /file/download", "= /file/download/", "@download_asked", "@download_decided"}
    assert len({name for name in logged if name.startswith("/_decided/")}) == len(KINDS)
    assert render().count("error_log ") == 1 + len(locations()) - len(logged)


def run_gixy(configuration: str, folder: Path, *options: str) -> None:
    (folder / "nginx.conf").write_text(configuration)
    done = subprocess.run([str(Path(sys.executable).with_name("gixy")), *options, str(folder / "nginx.conf")],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


TEXTS: dict[str, Callable[[], str]] = {
    "with JavaScript": render, "without": partial(render, njs=None), "IPv6": partial(render, host="::1"),
    "behind proxies": partial(render, proxies="10.0.0.5, 192.168.1.0/24, fd00::/8"),
}


@pytest.mark.parametrize("text", TEXTS)
def test_gixy_finds_nothing(tmp_path: Path, text: str) -> None:
    """All checks, for each value of the variable that a proxy_pass has, of each way in which the text differs.

    Of a variable itself gixy knows only that its value may be the name of a host, which the check `missing_resolver`
    would have looked up: on the text as it is, this one check is left to the other runs.
    """
    configuration = TEXTS[text]()
    run_gixy(configuration, tmp_path, "--skips", "missing_resolver")
    values = {value for body in re.findall(r"^ *(?:map|split_clients) \S+ \$(?:workers|any_worker) \{$(.*?)^ *\}$",
                                           configuration, re.MULTILINE | re.DOTALL)
              for value in re.findall(r" (\w+);", body)}
    assert values == {"workers", "worker_0", "worker_1"}
    variables = re.findall(r"proxy_pass \S*?(\$\w+)", configuration)
    assert set(variables) == {"$workers"}
    for value in values:
        run_gixy(configuration.replace("proxy_pass http://$workers;", f"proxy_pass http://{value};"), tmp_path)


@pytest.mark.parametrize("name", ["a$b", 'a"b', "a'b", "a\\b", "a\nb", "a\x7fb"])
def test_data_root_that_nginx_would_misread_is_refused(name: str) -> None:
    with pytest.raises(StartError, match="choose a data root without"):
        nginx.check_data_root(Path("/srv") / name)
    nginx.check_data_root(Path("/srv/a b/д~;#{}[]*?%&,"))


@pytest.mark.parametrize("host", ["a b", "x;", "{", "$host", "a/b"])
def test_host_that_nginx_would_misread_is_refused(host: str) -> None:
    with pytest.raises(StartError, match="cannot listen on the address"):
        render(host=host)
