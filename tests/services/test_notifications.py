"""Notifications reach a real mail server and a real HTTP receiver; one that cannot be sent is said and stops nothing."""

from __future__ import annotations

import json
import socket
import socketserver

import pytest

from headrace.errors import SettingsError
from headrace.project import Project
from headrace.services.notifications import notify
from headrace.settings import Settings, load_settings
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


def sent(project: Project, *addresses: str) -> tuple[bool, list[str]]:
    lines: list[str] = []
    notifying = project.using(Settings(notify=addresses))
    return notify("tiny@3: alarm", "the rows differ from training\nheadrace drift tiny", notifying, lines.append), lines


def test_a_mail_and_a_webhook_arrive(project: Project) -> None:
    with running(Mailbox()) as mail, running(Receiver(200)) as hook:
        address = f"mailto://127.0.0.1:{mail.server_address[1]}?from=models@example.org&to=team@example.org"
        done = sent(project, address, f"json://127.0.0.1:{hook.server_address[1]}/models")
    assert done == (True, [])
    (message,) = mail.messages
    assert "tiny@3" in message and "To: team@example.org" in message and "the rows differ from training" in message
    assert hook.bodies[0]["title"] == "tiny@3: alarm" and "headrace drift tiny" in hook.bodies[0]["message"]


def test_one_that_is_refused_is_said_without_its_secrets_and_the_others_are_sent(project: Project) -> None:
    with running(Receiver(500)) as refusing, running(Receiver(200)) as hook:
        refused = f"json://user:s3cret@127.0.0.1:{refusing.server_address[1]}/"
        complete, lines = sent(project, refused, "nothing://at.all/t0ken", f"json://127.0.0.1:{hook.server_address[1]}/")
    assert not complete and len(hook.bodies) == 1
    assert lines[0].startswith("the notification to json://127.0.0.1:") and "nothing://…" in lines[1]
    assert "s3cret" not in str(lines) and "t0ken" not in str(lines)


def test_a_receiver_that_hangs_is_given_up(project: Project) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        complete, lines = sent(project, f"json://127.0.0.1:{silent.getsockname()[1]}/")
    assert not complete and "could not be sent" in lines[0]


def test_without_an_address_nothing_is_sent(project: Project) -> None:
    assert sent(project) == (True, [])


def test_addresses_come_from_the_variable_or_the_file(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "headrace.toml").write_text('notify = ["json://one.example/", "json://two.example/"]\n')
    assert load_settings(project.root).notify == ("json://one.example/", "json://two.example/")
    monkeypatch.setenv("HEADRACE_NOTIFY", "json://three.example/ mailto://a:b@example.org")
    assert load_settings(project.root).notify == ("json://three.example/", "mailto://a:b@example.org")
    for passed_on in ((), ("json://four.example/ with a blank",)):
        monkeypatch.setenv("HEADRACE_NOTIFY", json.dumps(passed_on))
        assert load_settings(project.root).notify == passed_on
    monkeypatch.setenv("HEADRACE_NOTIFY", "three.example")
    with pytest.raises(SettingsError, match="notify"):
        load_settings(project.root)
