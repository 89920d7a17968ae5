"""The page that exchanges a login code for a session, and the page for a browser without one."""

from __future__ import annotations

import base64
import hashlib
import html
import json

LOGIN_PATH = "/headrace/login"
CODES_PATH = "/headrace/codes"

FIRST_SETTINGS = {
    "mlflow": {
        "mlflow.workflowType_v1": '"machine_learning"',
        "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
        "mlflow.assistant.panelOpen_v1": "false",
        "mlflow.telemetry.info.alert.dismissed_v1": "true",
        "mlflow.settings.telemetry.enabled_v1": "false",
    }
}
"""What a server's pages keep in the browser (`localStorage`), set at the first login: MLflow opens on models and runs, not on
its pages for language models, and neither its assistant nor a notice about telemetry covers them. A person's choices stay."""

# The code is in the URL's fragment, which a browser does not send and which is in no log; after "~" follows a page.
_SCRIPT = """
const [code, page] = location.hash.slice(1).split("~"), text = document.getElementById("text");
const form = document.getElementById("form"), first = JSON.parse(document.body.dataset.first);
history.replaceState(null, "", location.pathname);
for (const [name, value] of Object.entries(first)) if (localStorage.getItem(name) === null) localStorage.setItem(name, value);
const logIn = secret => fetch(location.pathname, {method: "POST", body: secret}).then(answer => {
  if (answer.ok) location.replace(page ? "/#" + page : "/");
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
        f'<body data-failed="{html.escape(failed)}" data-first="{html.escape(json.dumps(FIRST_SETTINGS.get(server, {})))}">'
        f'<p id="text"></p>{_FORM if takes_tokens else ""}'
        f"<script>{_SCRIPT}</script></body>"
    )


def refusal_page(server: str, takes_tokens: bool) -> str:
    """Returns the page for a browser that is not logged in."""
    token = f"<p>Or <a href='{LOGIN_PATH}'>log in with a token</a> of a reviewer or a viewer.</p>" if takes_tokens else ""
    return (
        f"<!doctype html><meta charset='utf-8'><title>Not logged in</title>"
        f"<p>You are not logged in. Run this command in the project's folder:</p><pre>headrace open {server}</pre>{token}"
    )
