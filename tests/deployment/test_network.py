"""Starting on free ports, with a small HTTP server in the place of Flower's."""

import socket
import sys

import pytest

from fedsim.deployment import certificates, network
from fedsim.deployment.certificates import Credentials
from fedsim.deployment.processes import Processes
from fedsim.errors import FedsimError

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


OVER_TLS = SERVER.replace("http.server.HTTPServer(", "server = http.server.HTTPServer(").replace(
    ".serve_forever()",
    """
import ssl
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()""",
)


def python(code, *arguments):
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.fixture
def processes():
    with Processes({}) as held:
        yield held


def test_ports_are_free_and_those_of_processes_that_answer(processes):
    ports = network._start(processes, ["a", "b"], lambda number, port: python(SERVER, port), None, 60.0)
    assert len(set(ports)) == 2
    for port in ports:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    assert processes.ended() == {}


def test_a_port_that_another_process_has_taken_is_replaced(processes):
    tried = []

    def command(number, port):
        tried.append(port)
        return python(SERVER, taken if len(tried) == 1 else port)

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        taken = other.getsockname()[1]
        other.listen()
        (port,) = network._start(processes, ["a"], command, None, 60.0)
    assert tried == [tried[0], port] and port != taken


def test_a_process_that_ends_while_it_starts_is_told_with_what_it_said(processes):
    failing = python("import sys; print('no such option'); sys.exit(2)")
    with pytest.raises(FedsimError, match=r"a: ended with exit code 2 while it started\. It said:\n  no such option"):
        network._start(processes, ["a"], lambda number, port: failing, None, 60.0)


def test_a_process_that_never_answers_is_given_up_with_advice(processes):
    with pytest.raises(FedsimError, match=r"a: does not answer within 0\.3 s\. Give it more with --node-timeout"):
        network._start(processes, ["a"], lambda number, port: python("import time; time.sleep(99)"), None, 0.3)


def test_a_call_that_fails_or_hangs_is_told(processes):
    network.call(processes, "fine", python(""), 60.0)
    with pytest.raises(FedsimError, match=r"register-0: failed with exit code 3\. It said:\n  refused"):
        network.call(processes, "register-0", python("print('refused'); raise SystemExit(3)"), 60.0)
    with pytest.raises(FedsimError, match=r"slow: not done within 0\.2 s"):
        network.call(processes, "slow", python("import time; time.sleep(99)"), 0.2)


def test_a_key_that_the_superlink_knows_stays_as_it_is(processes, monkeypatch, tmp_path):
    told = {"said": "Public key already in use."}
    monkeypatch.setattr(
        network.commands, "register", lambda key: python(f"print({told['said']!r}); raise SystemExit(1)")
    )
    keys = Credentials(tmp_path)
    network.register(processes, keys, 2, 60.0)
    told["said"] = "no rights"
    with pytest.raises(FedsimError, match="register-0: failed with exit code 1"):
        network.register(processes, keys, 2, 60.0)


def test_over_tls_a_server_is_waited_for_and_one_of_another_authority_refused(processes, tmp_path):
    ours, theirs = (certificates.make(tmp_path / name, 1) for name in ("ours", "theirs"))

    def command(number, port):
        return python(OVER_TLS, port, ours.certificate, ours.key)

    network._start(processes, ["a"], command, ours, 60.0)
    with pytest.raises(FedsimError, match=r"--tls: the certificate of the SuperLink is refused: .*fedsim certs"):
        network._start(processes, ["b"], command, theirs, 60.0)
