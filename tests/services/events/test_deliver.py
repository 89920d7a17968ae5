"""Deliveries to real receivers: signed, in order, again after a failure and a kill; one that hangs holds up no other."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.errors import SettingsError
from headrace.events import outbox
from headrace.events.outbox import ReceiverState
from headrace.events.publish import publish
from headrace.events.signature import read_key, signed_headers
from headrace.project import Project
from headrace.release import journal
from headrace.services.events.deliver import Deliveries
from headrace.services.events.receivers import Receiver, WebhookReceiver
from headrace.serving.access.tls import prepare_certificate
from headrace.settings import Settings, Webhook
from tests.http_receiver import running
from tests.services.events.webhook_receiver import SECRET, WebhookServer, is_genuine

DAY = 86400.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "dvc.yaml").touch()
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    return Project(tmp_path).using(Settings())


def hook(name: str, url: str, project: Project, answer_seconds: float = 10.0, **fields: object) -> WebhookReceiver:
    webhook = Webhook.model_validate({"name": name, "url": url, "secret_env": "HOOK_SECRET", **fields})
    return WebhookReceiver(webhook, project, answer_seconds)


def deliver(project: Project, receivers: Sequence[Receiver], clock: Clock) -> Deliveries:
    """Delivers what is due by the clock to each receiver, once."""
    deliveries = Deliveries(project, receivers, clock)
    deliveries.register()
    deliveries.collect()
    for receiver in receivers:
        deliveries.deliver_to(receiver.key)
    return deliveries


def state_of(project: Project, receiver: Receiver) -> ReceiverState:
    with outbox.opened(project) as connection:
        return next(state for state in outbox.receivers(connection) if state.key == receiver.key)


def release(project: Project, *versions: str) -> None:
    for version in versions:
        assert publish(project, "released", "tiny", {"version": version})


def versions(server: WebhookServer) -> list[str]:
    return [body["data"]["version"] for body in server.received]


def test_a_webhook_is_signed_and_says_what_happened(project: Project) -> None:
    release(project, "3")
    with running(WebhookServer()) as server:
        deliver(project, [hook("ops", server.url, project)], Clock())
    (body,), (headers,) = server.received, server.headers
    assert body["type"] == "headrace.released" and body["data"] == {"model": "tiny", "sequence": 1, "version": "3"}
    assert body["timestamp"].endswith("Z") and headers["content-type"] == "application/json"
    assert headers["webhook-id"] == server.attempts[0]
    text = json.dumps(body).encode()
    assert is_genuine(headers, text, SECRET)
    assert not is_genuine(headers, text.replace(b"3", b"4"), SECRET)
    assert not is_genuine({**headers, "webhook-timestamp": str(int(time.time()) - 600)}, text, SECRET)


def test_the_signature_is_that_of_the_specification() -> None:
    """The example of the library `standardwebhooks` for Python."""
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    headers = signed_headers("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}', key)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_failure_is_tried_again_later_and_no_event_passes_another(project: Project) -> None:
    clock = Clock()
    release(project, "1", "2")
    with running(WebhookServer(500, 302, 204)) as server:
        ops = hook("ops", server.url, project)
        deliver(project, [ops], clock)
        assert state_of(project, ops).error == "it answered 500"
        deliver(project, [ops], clock)
        assert len(server.attempts) == 1, "not before its time"
        clock.now += 10.0
        deliver(project, [ops], clock)
        assert "a redirect, which is not followed" in state_of(project, ops).error
        clock.now += 20.0
        deliver(project, [ops], clock)
    assert versions(server) == ["1", "2"] and len(server.attempts) == 4 and len(set(server.attempts[:3])) == 1
    assert state_of(project, ops).failures == 0 and state_of(project, ops).delivered == 2


def test_the_waits_grow_up_to_six_hours_with_jitter(project: Project) -> None:
    clock, waits = Clock(), []
    release(project, "1")
    with running(WebhookServer(*[503] * 20)) as server:
        ops = hook("ops", server.url, project)
        for _ in range(15):
            deliver(project, [ops], clock)
            waits.append(state_of(project, ops).next_at - clock.now)
            clock.now = state_of(project, ops).next_at
    assert all(5.0 * 2**n <= wait <= 10.0 * 2**n for n, wait in enumerate(waits[:11]))
    assert all(3 * 3600 <= wait <= 6 * 3600 for wait in waits[12:])
    assert len({round(wait / 2**n, 6) for n, wait in enumerate(waits[:11])}) > 1


def test_retry_after_is_respected(project: Project) -> None:
    clock = Clock()
    release(project, "1")
    with running(WebhookServer(429)) as server:
        server.headers_of_answer = {"retry-after": "3600"}
        ops = hook("ops", server.url, project)
        deliver(project, [ops], clock)
    assert state_of(project, ops).next_at == clock.now + 3600.0


def test_what_cannot_be_delivered_for_days_is_dropped_and_said(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    release(project, "1")
    with running(WebhookServer(*[500] * 7)) as server:
        ops = hook("ops", server.url, project)
        for _ in range(6):
            deliver(project, [ops], clock)
            clock.now += 3600.0
        assert state_of(project, ops).dropped == 0
        with outbox.opened(project) as connection:
            connection.execute("UPDATE event SET at = ?", (clock.now - 4 * DAY,))
        release(project, "2")
        deliver(project, [ops], clock)
        assert state_of(project, ops).dropped == 1 and "it answered 500" in state_of(project, ops).dropped_last
        clock.now += DAY
        deliver(project, [ops], clock)
    assert versions(server) == ["2"]
    assert "headrace.released of tiny from 20" in capsys.readouterr().out


def test_a_receiver_that_is_gone_gets_nothing_more_until_a_test_succeeds(project: Project) -> None:
    clock = Clock()
    release(project, "1")
    with running(WebhookServer(410)) as server:
        ops = hook("ops", server.url, project)
        deliver(project, [ops], clock)
        release(project, "2")
        clock.now += DAY
        deliver(project, [ops], clock)
        assert state_of(project, ops).gone and state_of(project, ops).dropped == 2 and len(server.attempts) == 1
        with outbox.opened(project) as connection:
            outbox.resume(connection, ops.key)
        release(project, "3")
        deliver(project, [ops], clock)
    assert versions(server) == ["3"]


def test_a_receiver_that_hangs_holds_up_no_other(project: Project) -> None:
    release(project, "1", "2")
    with running(WebhookServer()) as server, socket.create_server(("127.0.0.1", 0)) as silent:
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        hanging = hook("hanging", address, project, answer_seconds=2.0)
        Deliveries(project, [hanging, hook("ops", server.url, project)]).run()
    assert versions(server) == ["1", "2"]
    assert state_of(project, hanging).error == "no answer within 2 s"


def test_an_answer_that_drips_is_given_up(project: Project) -> None:
    """A byte now and then keeps a timeout of the socket from passing."""
    release(project, "1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.listen()
        ended = threading.Event()
        thread = threading.Thread(target=drip, args=(server, ended), daemon=True)
        thread.start()
        slow = hook("slow", f"http://127.0.0.1:{server.getsockname()[1]}/", project, answer_seconds=2.0)
        deliver(project, [slow], Clock())
        ended.set()
        thread.join()
    assert state_of(project, slow).error == "no answer within 2 s"


def drip(server: socket.socket, ended: threading.Event) -> None:
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"HTTP/1.1 200 OK\r\nx: ")
        while not ended.wait(0.2):
            try:
                connection.sendall(b"x")
            except OSError:
                return


def test_an_invalid_certificate_is_refused_and_named(project: Project) -> None:
    release(project, "1")
    certificate = prepare_certificate(project.using(Settings(tls="self_signed")))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.key)
    with running(WebhookServer()) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        secure = hook("ops", server.url.replace("http://", "https://"), project)
        deliver(project, [secure], Clock())
    assert "its TLS certificate is not valid" in state_of(project, secure).error and server.attempts == []


def test_an_error_tells_no_token_of_the_address(project: Project) -> None:
    release(project, "1")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    ops = hook("ops", f"http://user:pa55@127.0.0.1:{port}/t0ken", project)
    deliver(project, [ops], Clock())
    assert state_of(project, ops).error and "t0ken" not in str(state_of(project, ops)) + ops.label
    assert "pa55" not in str(state_of(project, ops)) + ops.label + repr(ops)


def test_a_clock_that_jumps_stops_and_drops_nothing(project: Project) -> None:
    clock = Clock()
    release(project, "1")
    with running(WebhookServer(500)) as server:
        ops = hook("ops", server.url, project)
        clock.now += 400 * DAY
        deliver(project, [ops], clock)
        assert state_of(project, ops).dropped == 0
        clock.now -= 401 * DAY
        release(project, "2")
        deliver(project, [ops], clock)
    assert versions(server) == ["1", "2"] and [body["data"]["sequence"] for body in server.received] == [1, 2]


def test_deliveries_go_on_after_a_kill(project: Project) -> None:
    """At least once: the event whose delivery was interrupted is sent again, with its id."""
    release(project, *map(str, range(8)))
    with running(WebhookServer()) as server:
        table = f'[[webhooks]]\nname = "ops"\nurl = "{server.url}"\nsecret_env = "HOOK_SECRET"\n'
        (project.root / "headrace.toml").write_text(table)
        environment = {**os.environ, "HEADRACE_ROOT": str(project.root)}
        command = [sys.executable, "-m", "headrace.services.events.deliver"]
        with subprocess.Popen(command, env=environment) as child:
            while len(server.attempts) < 2 and child.poll() is None:
                pass
            os.kill(child.pid, signal.SIGKILL)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert list(dict.fromkeys(versions(server))) == [str(number) for number in range(8)]
    assert done.returncode == 0 and "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("text", "mode", "message"),
    [
        (SECRET, 0o644, "other users can use"),
        ("an open text", 0o600, "holds no secret"),
        ("whsec_c2hvcnQ=", 0o600, "holds no secret"),
        ("whsec_***", 0o600, "holds no secret"),
        (None, 0o600, "cannot be read"),
    ],
)
def test_a_secret_that_is_none_is_named_and_not_shown(project: Project, text: str | None, mode: int, message: str) -> None:
    webhook = Webhook(name="ops", url="https://example.org/", secret_file=Path("hook.secret"))
    if text is not None:
        (project.root / "hook.secret").write_text(text)
        (project.root / "hook.secret").chmod(mode)
    with pytest.raises(SettingsError, match=message) as caught:
        read_key(webhook, project)
    assert caught.value.hint and (text is None or text not in str(caught.value))


def test_receivers_are_shown_with_their_errors_and_a_test_revives_one(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from click.testing import CliRunner

    from headrace.cli.main import cli

    monkeypatch.setenv("HEADRACE_ROOT", str(project.root))
    release(project, "1")
    with running(WebhookServer(410)) as server:
        table = f'[[webhooks]]\nname = "ops"\nurl = "{server.url}"\nsecret_env = "HOOK_SECRET"\n'
        (project.root / "headrace.toml").write_text(table)
        deliver(project, [hook("ops", server.url, project)], Clock())
        shown = CliRunner().invoke(cli, ["webhooks", "list"])
        assert shown.exit_code == 0 and "it answered 410; pending events: 1; nothing more is sent to it" in shown.output
        assert "t0ken" not in shown.output + CliRunner().invoke(cli, ["webhooks", "list", "--json"]).output
        tested = CliRunner().invoke(cli, ["webhooks", "test", "ops"])
        assert tested.exit_code == 0 and tested.output.startswith("ops: accepted in")
        assert server.received[0]["type"] == "headrace.test"
        server.answers = [500]
        refused = CliRunner().invoke(cli, ["webhooks", "test"])
        assert refused.exit_code == 5 and refused.output == "ops: not accepted: it answered 500\n"
        assert "410" not in CliRunner().invoke(cli, ["webhooks", "list"]).output
    assert CliRunner().invoke(cli, ["webhooks", "test", "osp"]).exception is not None


def test_a_journal_that_was_modified_holds_up_no_other_event(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    journal.record(project, "released", "tiny", "1", {})
    journal.record(project, "rolled-back", "tiny", "1", {"rolled_back": {"from": "2", "why": "slow", "by": "ops"}})
    journal.record(project, "rollout-failed", "tiny", "3", {"serving": "1", "reason": "errors"})
    with running(WebhookServer()) as server:
        ops = hook("ops", server.url, project)
        deliver(project, [ops], clock)
        kinds = [(body["type"], body["data"]["version"], body["data"].get("automatic")) for body in server.received]
        assert kinds == [
            ("headrace.released", "1", None),
            ("headrace.rolled-back", "1", False),
            ("headrace.rolled-back", "1", True),
        ]
        lines = project.journal.read_text().splitlines()
        project.journal.write_text("\n".join([lines[0].replace('"1"', '"9"'), *lines[1:], ""]))
        release(project, "4")
        deliver(project, [ops], clock)
        assert versions(server)[3:] == ["4"] and "the journal was modified" in capsys.readouterr().out
