"""/auth: register, log in, refresh, log out, me, change the password, delete the account."""

from aiohttp import web

from service.api.auth import address, caller, user_agent
from service.api.body import read_json_or_form
from service.api.keys import DOMAIN, TRACE
from service.api.rest import schema
from service.api.rest.answers import answer
from service.api.rest.openapi import FORM, JSON, operation


@operation("Register", tag="auth", public=True, body=schema.Registration,
           returns={201: (schema.User, "The new account")},
           errors={400: "", 409: "The username is taken: `username_taken`", 413: "", 415: "", 422: "", 429: "",
                   503: ""})
async def register(request: web.Request) -> web.StreamResponse:
    """Make an account."""
    data = schema.load(schema.Registration, await read_json_or_form(request))
    request[TRACE].fields["username"] = data["username"]
    user = await request.app[DOMAIN].accounts.register(data["username"], data["password"], address=address(request))
    return answer(schema.user_json(user), status=201)


@operation("Log in", tag="auth", public=True, body=schema.Credentials, form=schema.LoginForm, consumes=(JSON, FORM),
           description="As JSON, or as the password form of OAuth 2.0.",
           returns={200: (schema.Tokens, "The tokens of a new session")},
           errors={400: "", 401: "Unknown account or wrong password: `invalid_credentials`", 413: "", 415: "", 422: "",
                   429: "", 503: ""})
async def log_in(request: web.Request) -> web.StreamResponse:
    """Begin a session."""
    data = schema.load(schema.Credentials, await read_json_or_form(request))
    request[TRACE].fields["username"] = data["username"]
    tokens = await request.app[DOMAIN].accounts.log_in(
        data["username"], data["password"], address=address(request), user_agent=user_agent(request))
    return answer(schema.tokens_json(tokens))


@operation("Refresh the tokens", tag="auth", public=True, body=schema.RefreshRequest,
           description="A refresh token is good for one use. Used again, it ends its session.",
           returns={200: (schema.Tokens, "New tokens of the same session")},
           errors={400: "", 401: "Unknown, expired or used before: `invalid_refresh_token`", 413: "", 415: "", 422: "",
                   429: "", 503: ""})
async def refresh(request: web.Request) -> web.StreamResponse:
    """Exchange a refresh token."""
    data = schema.load(schema.RefreshRequest, await read_json_or_form(request))
    return answer(schema.tokens_json(
        await request.app[DOMAIN].accounts.refresh(data["refresh_token"], address=address(request))))


@operation("Log out", tag="auth", description="Ends the session: its tokens are refused within five seconds.",
           returns={204: "The session has ended"}, errors=(503,))
async def log_out(request: web.Request) -> web.StreamResponse:
    """End the session."""
    await request.app[DOMAIN].accounts.log_out(caller(request))
    return web.Response(status=204)


@operation("Who am I", tag="auth", returns={200: (schema.User, "The caller's account")}, errors=(503,))
async def show_me(request: web.Request) -> web.StreamResponse:
    """The caller's account."""
    return answer(schema.user_json(await request.app[DOMAIN].accounts.me(caller(request))))


_WRONG_PASSWORD = "This is not the password of the account: `wrong_password`"


@operation("Change the password", tag="auth", body=schema.PasswordChange,
           description="Ends all other sessions of the account: their tokens are refused within five seconds. The "
                       "current one goes on, with its tokens.",
           returns={204: "It is changed"},
           errors={403: _WRONG_PASSWORD, 409: "Somebody else changed it at the same time: `conflict`", 429: ""})
async def change_password(request: web.Request) -> web.StreamResponse:
    """Change the password."""
    data = schema.load(schema.PasswordChange, await read_json_or_form(request))
    await request.app[DOMAIN].accounts.change_password(caller(request), data["old_password"], data["new_password"],
                                                       address=address(request))
    return web.Response(status=204)


@operation("Delete the account", tag="auth", body=schema.AccountDeletion,
           description="With everything in it: files, former versions, trash, links, sessions. There is no way back; "
                       "the name is free again.",
           returns={204: "It is gone"},
           errors={403: _WRONG_PASSWORD, 409: "Somebody changed the password at the same time: `conflict`", 429: ""})
async def delete_me(request: web.Request) -> web.StreamResponse:
    """Delete the caller's account."""
    data = schema.load(schema.AccountDeletion, await read_json_or_form(request))
    await request.app[DOMAIN].accounts.delete(caller(request), data["password"], address=address(request))
    return web.Response(status=204)
