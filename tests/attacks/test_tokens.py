"""Attack 6: access tokens that nobody issued, that are over, or that come by another way."""

import base64
import hashlib
import hmac
import time
import uuid
from typing import Any

import jwt
import orjson
import pytest

from tests.attacks.wire import ask, head, request
from tests.client import PASSWORD, Api
from tests.stack import Stack

END_SECONDS = 5.0  # the promise: a session that has ended is refused so soon


def _secret(stack: Stack) -> str:
    return (stack.root / "jwt_secret").read_text(encoding="ascii").strip()


def _encode(data: object) -> str:
    raw = data if isinstance(data, bytes) else orjson.dumps(data)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _sign(header: object, payload: object, secret: str, algorithm: str = "sha256") -> str:
    """A token made by hand, since PyJWT refuses to make some."""
    signed = f"{_encode(header)}.{_encode(payload)}"
    return f"{signed}.{_encode(hmac.digest(secret.encode(), signed.encode(), algorithm))}"


def _claims(api: Api) -> dict[str, Any]:
    """What the service put into the token of this account."""
    return dict(jwt.decode(api.token, options={"verify_signature": False}))


GOOD = {"alg": "HS256", "typ": "JWT"}


def _refused(api: Api) -> dict[str, str]:
    """Tokens that are wrong in one way each; those with the right secret are what an insider could make at most."""
    secret, claims, now = _secret(api.stack), _claims(api), int(time.time())
    public = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
    made = {
        "none": f"{_encode({'alg': 'none', 'typ': 'JWT'})}.{_encode(claims)}.",
        "None": f"{_encode({'alg': 'None'})}.{_encode(claims)}.",
        "none, signed": _sign({"alg": "none"}, claims, secret),
        "no algorithm": _sign({"typ": "JWT"}, claims, secret),
        "algorithm of another kind": _sign({"alg": 256}, claims, secret),
        "HS384": _sign({"alg": "HS384"}, claims, secret, "sha384"),
        "HS512": _sign({"alg": "HS512"}, claims, secret, "sha512"),
        "HS256, said to be RS256": _sign({"alg": "RS256"}, claims, secret),
        "HS256, said to be ES256": _sign({"alg": "ES256"}, claims, secret),
        "HS256, said to be hs256": _sign({"alg": "hs256"}, claims, secret),
        "HS256 with a public key": _sign(GOOD, claims, public),
        "empty secret": _sign(GOOD, claims, ""),
        "foreign secret": _sign(GOOD, claims, "x" * 64),
        "secret of all zeros": _sign(GOOD, claims, "0" * 64),
        "secret with its line feed": _sign(GOOD, claims, secret + "\n"),
        "secret as bytes of its hex": _sign(GOOD, claims, bytes.fromhex(secret).decode("latin-1")),
        "crit": _sign({**GOOD, "crit": ["exp"]}, claims, secret),
        "crit, empty": _sign({**GOOD, "crit": []}, claims, secret),
        "b64": _sign({**GOOD, "b64": False, "crit": ["b64"]}, claims, secret),
        "kid with a path": _sign({**GOOD, "kid": "../../../../dev/null"}, claims, ""),
        "jwk": _sign({**GOOD, "jwk": {"kty": "oct", "k": _encode(b"x" * 32)}}, claims, "x" * 32),
        "jku": _sign({**GOOD, "jku": "http://127.0.0.1:1/keys"}, claims, "x" * 32),
        "expired": _sign(GOOD, {**claims, "iat": now - 1000, "exp": now - 100}, secret),
        "expires now": _sign(GOOD, {**claims, "exp": now}, secret),
        "far future": _sign(GOOD, {**claims, "exp": now + 10**9}, secret),
        "exp 10**30": _sign(GOOD, _encode_huge(claims, "exp"), secret),
        "issued in the future": _sign(GOOD, {**claims, "iat": now + 600, "exp": now + 900}, secret),
        "exp as text": _sign(GOOD, {**claims, "exp": str(claims["exp"])}, secret),
        "exp as float": _sign(GOOD, {**claims, "exp": float(claims["exp"]) + 0.5}, secret),
        "exp true": _sign(GOOD, {**claims, "exp": True}, secret),
        "exp null": _sign(GOOD, {**claims, "exp": None}, secret),
        "sub int": _sign(GOOD, {**claims, "sub": 1}, secret),
        "sub list": _sign(GOOD, {**claims, "sub": [claims["sub"]]}, secret),
        "sub no uuid": _sign(GOOD, {**claims, "sub": "alice"}, secret),
        "sub empty": _sign(GOOD, {**claims, "sub": ""}, secret),
        "sub NUL": _sign(GOOD, {**claims, "sub": claims["sub"] + "\0"}, secret),
        "sub upper case": _sign(GOOD, {**claims, "sub": claims["sub"].upper()}, secret),
        "sub of nobody": _sign(GOOD, {**claims, "sub": str(uuid.uuid4())}, secret),
        "sid of nothing": _sign(GOOD, {**claims, "sid": str(uuid.uuid4())}, secret),
        "sid int": _sign(GOOD, {**claims, "sid": 7}, secret),
        "other issuer": _sign(GOOD, {**claims, "iss": "file-storag"}, secret),
        "issuer with more": _sign(GOOD, {**claims, "iss": "file-storage2"}, secret),
        "issuer list": _sign(GOOD, {**claims, "iss": [claims["iss"]]}, secret),
        "other audience": _sign(GOOD, {**claims, "aud": "other"}, secret),
        "audience list": _sign(GOOD, {**claims, "aud": [claims["aud"], "other"]}, secret),
        "payload list": _sign(GOOD, [claims], secret),
        "payload null": _sign(GOOD, b"null", secret),
        "payload deep": _sign(GOOD, b"[" * 900 + b"]" * 900, secret),
        "payload not JSON": _sign(GOOD, b"{", secret),
        "payload not UTF-8": _sign(GOOD, b'{"sub": "\xff"}', secret),
        "header list": _sign([GOOD], claims, secret),
        "header not JSON": _sign(b"{{", claims, secret),
        "huge": _sign(GOOD, {**claims, "x": "y" * 9000}, secret),
        "two parts": ".".join(api.token.split(".")[:2]),
        "four parts": api.token + ".x",
        "no signature": ".".join(api.token.split(".")[:2]) + ".",
        "other signature": api.token[:-8] + ("AAAAAAAA" if not api.token.endswith("AAAAAAAA") else "BBBBBBBB"),
        "two tokens": f"{api.token} {api.token}",
        "comma": f"{api.token},{api.token}",
        "in quotes": f'"{api.token}"',
        "empty": "", "dots": "..", "word": "null", "undefined": "undefined", "refresh token": api.refresh_token,
        "not ASCII": api.token + "é", "star": "*",
    }
    for name in claims:
        made[f"without {name}"] = _sign(GOOD, {key: value for key, value in claims.items() if key != name}, secret)
    return made


def _encode_huge(claims: dict[str, Any], name: str) -> bytes:
    huge = b'"%s":1%s' % (name.encode(), b"0" * 30)
    return orjson.dumps({**claims, name: 0}).replace(b'"%s":0' % name.encode(), huge)


def test_the_token_made_here_from_the_right_secret_is_good(nginx_stack: Stack) -> None:
    """Or the refusals below would prove nothing: what is refused is refused for its one fault."""
    account = orjson.dumps({"username": uuid.uuid4().hex, "password": PASSWORD})
    kind = "Content-Type: application/json"
    assert ask(nginx_stack, request("POST /auth/register", kind, body=account)).status == 201
    given = ask(nginx_stack, request("POST /auth/jwt/login", kind, body=account))
    claims = jwt.decode(orjson.loads(given.body)["access_token"], options={"verify_signature": False})
    again = _sign(GOOD, {**claims, "jti": str(uuid.uuid4())}, _secret(nginx_stack))
    assert ask(nginx_stack, request("GET /auth/me", token=again)).status == 200


async def test_tokens_that_nobody_issued_are_refused_alike(api: Api) -> None:
    """401 with the same text for each: an answer must not say what was nearly right."""
    await api.put("/mine", b"mine")
    seen = set()
    for name, token in _refused(api).items():
        for line in ("GET /file/list", "GET /file/download?path=/mine", "PUT /file?path=/new"):
            body = b"x" if "PUT" in line else None
            answer = ask(api.stack, request(line, f"Authorization: Bearer {token}", body=body))
            assert answer.status == 401, (name, answer)
            assert answer.code == "unauthenticated"
            assert answer.one("WWW-Authenticate") == "Bearer"
            assert token[-20:].encode() not in answer.body or len(token) < 20
            seen.add(orjson.loads(answer.body)["detail"])
    # the one other text is for a token that was issued here, whose session is over or never was
    assert len(seen) <= 2, seen
    assert [file["path"] for file in await api.list()] == ["/mine"]


@pytest.mark.parametrize("line", [
    "Authorization: {token}", "Authorization: bearer", "Authorization: Bearer", "Authorization: Bearer{token}",
    "Authorization: Basic {basic}", "Authorization: Token {token}", "Authorization: JWT {token}", "Authorization:",
    "Authorization: Bearer, {token}", "X-Authorization: Bearer {token}", "Proxy-Authorization: Bearer {token}",
    "Cookie: access_token={token}", "Cookie: Authorization=Bearer {token}", "X-Access-Token: {token}",
    "Authorization_: Bearer {token}", "X-Auth-Token: {token}",
])
async def test_token_that_comes_by_another_way_is_not_seen(api: Api, line: str) -> None:
    basic = base64.b64encode(f"{api.username}:{PASSWORD}".encode()).decode()
    answer = ask(api.stack, request("GET /auth/me", line.format(token=api.token, basic=basic)))
    assert (answer.status, answer.code) == (401, "unauthenticated")


@pytest.mark.parametrize("parameter", ["access_token", "token", "jwt", "auth", "authorization", "bearer", "api_key"])
async def test_token_in_the_address_is_ignored(api: Api, parameter: str) -> None:
    """RFC 6750, section 2.3, allows it and warns of it: addresses end up in logs and histories."""
    await api.put("/mine", b"mine")
    for line in ("GET /auth/me?", "GET /file/download?path=/mine&", "DELETE /file?path=/mine&", "PUT /file?path=/x&"):
        for text in (api.token, f"Bearer%20{api.token}"):
            answer = ask(api.stack, request(f"{line}{parameter}={text}", body=b"x" if "PUT" in line else None))
            assert (answer.status, answer.code) == (401, "unauthenticated")
    # and it does not stand in the way of the real one
    assert ask(api.stack, request(f"GET /auth/me?{parameter}=x", token=api.token)).status == 200
    login = orjson.dumps({"access_token": api.token})
    assert ask(api.stack, request("POST /auth/jwt/logout", "Content-Type: application/json", body=login)).status == 401


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "BEARER {}", "Bearer   {}"])
async def test_scheme_is_not_case_sensitive(api: Api, spelling: str) -> None:
    answer = ask(api.stack, request("GET /auth/me", f"Authorization: {spelling.format(api.token)}"))
    assert answer.status == 200


def _until_refused(api: Api, token: str) -> None:
    """Every worker refuses it within the promised time: many in a row are refused."""
    deadline = time.monotonic() + END_SECONDS
    refused = 0
    while refused < 20:
        answer = ask(api.stack, request("GET /auth/me", token=token))
        refused = refused + 1 if answer.status == 401 else 0
        assert refused or time.monotonic() < deadline, "still good"
        time.sleep(0.01)


async def test_token_after_logout_is_refused_in_time_on_every_worker(api: Api) -> None:
    for _ in range(20):  # every worker knows the session
        await api.call("GET", "/auth/me", expect=200)
    assert ask(api.stack, request("GET /auth/me", token=f"{api.token}=")).status == 200  # a twin: see below
    await api.call("POST", "/auth/jwt/logout", expect=204)
    _until_refused(api, api.token)
    _until_refused(api, f"{api.token}=")  # base64 has more than one spelling of a signature; they end together
    answer = ask(api.stack, head("PUT /file?path=/x", "Content-Length: 100000", "Connection: close", token=api.token))
    assert (answer.status, answer.code) == (401, "unauthenticated")
    reply = await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token})
    assert (reply.status, reply.code) == (401, "invalid_refresh_token")


async def test_stolen_refresh_token_ends_the_session_for_both(api: Api) -> None:
    """Used twice: one of the two is a thief, and nobody knows which."""
    first = (await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}, expect=200)).json
    again = await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token})
    assert (again.status, again.code) == (401, "invalid_refresh_token")
    last = await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": first["refresh_token"]})
    assert (last.status, last.code) == (401, "invalid_refresh_token")
    _until_refused(api, first["access_token"])
    _until_refused(api, api.token)


REFRESH = ["", "x", "..", "{0}.", ".{1}", "{0}.{1}x", "{0}{1}", "{2}.{1}", "{0}.{1}\n", "{0}.{1}\0", "{0}.%00",
           "{0}.{3}", "é" * 43, "x" * 60000]


async def test_refresh_tokens_that_nobody_gave_out_are_refused(api: Api) -> None:
    session_id, _, secret = api.refresh_token.partition(".")
    other = hashlib.sha256(secret.encode()).hexdigest()[:43]
    for text in REFRESH:
        token = text.format(session_id[:-1] + "x", secret, session_id.upper(), other)
        reply = ask(api.stack, request("POST /auth/jwt/refresh", "Content-Type: application/json",
                                       body=orjson.dumps({"refresh_token": token})))
        assert (reply.status, reply.code) in ((401, "invalid_refresh_token"), (422, "invalid_field")), (text, reply)
    raw = ask(api.stack, request("POST /auth/jwt/refresh", "Content-Type: application/json",
                                 body=b'{"refresh_token": "\\ud800"}'))
    assert raw.status in (400, 401, 422)
    for given in (b"null", b"7", b"[]", b"{}", b"true"):
        answer = ask(api.stack, request("POST /auth/jwt/refresh", "Content-Type: application/json",
                                        body=b'{"refresh_token": %s}' % given))
        assert (answer.status, answer.code) == (422, "invalid_field")
    assert (await api.call("GET", "/auth/me")).status == 200  # none of these was this session's
