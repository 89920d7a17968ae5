"""The page that exchanges a login code for a session, and the page for a browser without one."""

from __future__ import annotations

import base64
import hashlib
import html

LOGIN_PATH = "/headrace/login"
CODES_PATH = "/headrace/codes"

# The code is in the URL's fragment, which a browser does not send and which is in no log.
_SCRIPT = """
const code = location.hash.slice(1), text = document.getElementById("text"), form = document.getElementById("form");
history.replaceState(null, "", location.pathname);
const logIn = secret => fetch(location.pathname, {method: "POST", body: secret}).then(answer => {
  if (answer.ok) location.replace("/");
  else text.textContent = document.body.dataset.failed;
});
if (code || !form) { text.textContent = "Logging in …"; logIn(code); }
if (form) form.addEventListener("submit", event => { event.preventDefault(); logIn(form.token.value.trim()); });
"""
_FORM = """
<form id="form">
<label>A token with a role: <input name="token" type="password" autofocus></label> <button>Log in</button>
</form>
"""
_SCRIPT_HASH = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()
HEADERS = {
    "content-type": "text/html; charset=utf-8",
    "cache-control": "no-store",
    "referrer-policy": "no-referrer",
    "content-security-policy": f"default-src 'none'; connect-src 'self'; script-src 'sha256-{_SCRIPT_HASH}'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
}


def login_page(server: str, takes_tokens: bool) -> str:
    """Returns the page that posts the code in its URL's fragment, or a token, and then shows the server's pages."""
    failed = f"This link has been used or is too old. Run: headrace open {server}"
    if takes_tokens:
        failed = f"Not logged in. A link of headrace open {server} is valid once; a token needs a role and must not have ended."
    return (
        f"<!doctype html><meta charset='utf-8'><title>Log in to {server}</title>"
        f'<body data-failed="{html.escape(failed)}"><p id="text"></p>{_FORM if takes_tokens else ""}'
        f"<script>{_SCRIPT}</script></body>"
    )


def refusal_page(server: str, takes_tokens: bool) -> str:
    """Returns the page for a browser that is not logged in."""
    token = f"<p>Or <a href='{LOGIN_PATH}'>log in with a token</a> of a reviewer or a viewer.</p>" if takes_tokens else ""
    return (
        f"<!doctype html><meta charset='utf-8'><title>Not logged in</title>"
        f"<p>You are not logged in. Run this command in the project's folder:</p><pre>headrace open {server}</pre>{token}"
    )
