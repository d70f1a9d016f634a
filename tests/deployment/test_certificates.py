import datetime
import ipaddress
import socket
import ssl
import stat
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification

from fedsim.deployment import certificates
from fedsim.errors import FedsimError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return certificates.make(tmp_path_factory.mktemp("keys"), 2, ["superlink", "10.1.2.3", "::1", "localhost"], days=3)


def certificate(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def shake_hands(made, name):
    """Return what a client that trusts the authority says of a server that shows the certificate, under a name."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(made.certificate, made.key)
    client = ssl.create_default_context(cafile=str(made.authority))
    ours, theirs = socket.socketpair()

    def serve():
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    except ssl.SSLCertVerificationError as error:
        return error.verify_message
    finally:
        ours.close()
        thread.join()
    return "fine"


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "superlink", "10.1.2.3", "::1"])
def test_a_client_that_trusts_the_authority_accepts_the_names_of_the_server(made, name):
    assert shake_hands(made, name) == "fine"


def test_another_name_and_another_authority_are_refused(made, tmp_path):
    assert "mismatch" in shake_hands(made, "elsewhere")
    other = certificates.make(tmp_path / "other", 1)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for source, name in ((other.authority, "ca.crt"), (made.certificate, "server.crt"), (made.key, "server.key")):
        (mixed / name).write_bytes(source.read_bytes())
    assert "unable to get local issuer" in shake_hands(certificates.Credentials(mixed), "localhost") or "signature" in (
        shake_hands(certificates.Credentials(mixed), "localhost")
    )


def test_a_strict_verifier_accepts_the_chain_until_it_expires(made):
    authority, server = certificate(made.authority), certificate(made.certificate)
    now = datetime.datetime.now(datetime.UTC)
    builder = verification.PolicyBuilder().store(verification.Store([authority]))
    builder.time(now).build_server_verifier(x509.DNSName("superlink")).verify(server, [])
    verifier = builder.time(now + datetime.timedelta(days=4)).build_server_verifier(x509.DNSName("superlink"))
    with pytest.raises(verification.VerificationError):
        verifier.verify(server, [])
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "superlink"], "each once"
    assert ipaddress.ip_address("10.1.2.3") in names.get_values_for_type(x509.IPAddress)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_node_keys_are_of_the_kind_that_flower_takes_and_differ(made):
    keys = [serialization.load_ssh_private_key(made.node_key(client).read_bytes(), None) for client in (0, 1)]
    for client, key in enumerate(keys):
        assert isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP384R1)
        public = serialization.load_ssh_public_key(made.public_key(client).read_bytes())
        assert public == key.public_key()
    assert keys[0].public_key() != keys[1].public_key()


def test_private_keys_are_for_their_owner_alone_and_the_authority_has_none_left(made):
    private = [path for path in made.folder.iterdir() if b"PRIVATE" in path.read_bytes()]
    assert {path.name for path in private} == {"server.key", "node-0", "node-1"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in private)


def test_a_folder_with_something_in_it_is_left_alone(made):
    before = {path: path.read_bytes() for path in made.folder.iterdir()}
    with pytest.raises(FedsimError, match="something is in it"):
        certificates.make(made.folder, 1)
    assert before == {path: path.read_bytes() for path in made.folder.iterdir()}


@pytest.mark.parametrize("name", ["", "a b", "-a", "a-", "a..b", "http://a", "a:8000", "ü", "x" * 64, "*"])
def test_what_is_no_host_name_is_refused_and_nothing_is_written(tmp_path, name):
    with pytest.raises(FedsimError, match="no host name"):
        certificates.make(tmp_path / "new", 1, [name])
    assert not (tmp_path / "new").exists()


def test_a_folder_that_lacks_a_file_is_refused_with_the_command_that_makes_it(made, tmp_path):
    made.check(2)
    made.check(None)
    with pytest.raises(FedsimError, match=r"--tls: .*node-2: no such file\..*fedsim certs NEW_FOLDER --clients 3"):
        made.check(3)
    with pytest.raises(FedsimError, match=r"ca\.crt: no such file"):
        certificates.Credentials(tmp_path).check(None)
