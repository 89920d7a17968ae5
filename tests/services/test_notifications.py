"""Notifications reach a real mail server and a real HTTP receiver; one that cannot be sent is said."""

from __future__ import annotations

import json
import socket
import socketserver

import pytest

from headrace.errors import SettingsError
from headrace.project import Project
from headrace.services.notifications import send, without_secrets
from headrace.settings import load_settings
from tests.http_receiver import Receiver, running


class Mailbox(socketserver.ThreadingTCPServer):
    """A server that speaks SMTP (RFC 5321) as far as one message without authentication needs it."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Session)
        self.messages: list[str] = []


class Session(socketserver.StreamRequestHandler):
    server: Mailbox

    def handle(self) -> None:
        self.reply("220 ready")
        while line := self.rfile.readline().decode().strip():
            verb = line.split()[0].upper()
            if verb == "DATA":
                self.reply("354 go on")
                lines = []
                while (text := self.rfile.readline().decode()) not in (".\r\n", ""):
                    lines.append(text)
                self.server.messages.append("".join(lines))
            self.reply("221 bye" if verb == "QUIT" else "250 ok")
            if verb == "QUIT":
                return

    def reply(self, line: str) -> None:
        self.wfile.write(f"{line}\r\n".encode())


def sent(*addresses: str) -> list[bool]:
    return [send(address, "tiny@3: alarm", "the rows differ from training\nheadrace drift tiny") for address in addresses]


def test_a_mail_and_a_webhook_arrive() -> None:
    with running(Mailbox()) as mail, running(Receiver(200)) as hook:
        address = f"mailto://127.0.0.1:{mail.server_address[1]}?from=models@example.org&to=team@example.org"
        done = sent(address, f"json://127.0.0.1:{hook.server_address[1]}/models")
    assert done == [True, True]
    (message,) = mail.messages
    assert "tiny@3" in message and "To: team@example.org" in message and "the rows differ from training" in message
    assert hook.bodies[0]["title"] == "tiny@3: alarm" and "headrace drift tiny" in hook.bodies[0]["message"]


def test_one_that_is_refused_or_unknown_or_hangs_is_said() -> None:
    with running(Receiver(500)) as refusing, socket.create_server(("127.0.0.1", 0)) as silent:
        refused = f"json://user:s3cret@127.0.0.1:{refusing.server_address[1]}/"
        assert sent(refused, "nothing://at.all/t0ken", f"json://127.0.0.1:{silent.getsockname()[1]}/") == [False] * 3


def test_an_address_is_shown_without_its_secrets() -> None:
    assert without_secrets("json://user:s3cret@example.org/t0ken") == "json://example.org"
    assert without_secrets("slack://t0ken/t1ken") == "slack://…"


def test_addresses_come_from_the_variable_or_the_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "headrace.toml").write_text('notify = ["json://one.example/", "json://two.example/"]\n')
    assert load_settings(project.root).notify == ("json://one.example/", "json://two.example/")
    monkeypatch.setenv("HEADRACE_NOTIFY", "json://three.example/ mailto://a:b@example.org")
    assert load_settings(project.root).notify == ("json://three.example/", "mailto://a:b@example.org")
    for passed_on in ((), ("json://four.example/ with a blank",)):
        monkeypatch.setenv("HEADRACE_NOTIFY", json.dumps(passed_on))
        assert load_settings(project.root).notify == passed_on
    monkeypatch.setenv("HEADRACE_NOTIFY", "three.example")
    with pytest.raises(SettingsError, match="notify") as caught:
        load_settings(project.root)
    assert "three.example" not in str(caught.value)


def test_events_are_chosen_and_webhooks_described_with_errors_that_show_no_secret(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = project.root / "headrace.toml"
    toml.write_text('notify_on = ["alarm"]\n[[webhooks]]\nname = "ops"\nurl = "https://example.org/t0ken"\nsecret_env = "S"\n')
    settings = load_settings(project.root)
    assert settings.notify_on == ("alarm",) and settings.webhooks[0].origin == "https://example.org/…"
    monkeypatch.setenv("HEADRACE_WEBHOOKS", json.dumps([one.model_dump(mode="json") for one in settings.webhooks]))
    assert load_settings(project.root).webhooks == settings.webhooks, "one process passes them on to another"
    monkeypatch.delenv("HEADRACE_WEBHOOKS")
    table = '[[webhooks]]\nname = "o"\nurl = "https://t0ken.example"\nsecret_env = "S"\n'
    for wrong, message in {
        'notify_on = ["alarms"]': "unknown event 'alarms'; did you mean 'alarm'",
        '[[webhooks]]\nname = "ops"\nurl = "ftp://t0ken"\nsecret_env = "S"': "webhooks.0.url",
        '[[webhooks]]\nname = "ops"\nurl = "https://t0ken.example"': "expected either secret_env or secret_file",
        f'{table}events = ["release"]': "unknown event 'release'",
        table * 2: "two webhooks have the name 'o'",
    }.items():
        toml.write_text(wrong)
        with pytest.raises(SettingsError) as caught:
            load_settings(project.root)
        assert message in str(caught.value) and "t0ken" not in str(caught.value)
