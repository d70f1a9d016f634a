"""Certificates and keys of a deployment: an authority, the SuperLink's certificate, and a key for each SuperNode.

TLS: NIST P-256, signed with SHA-256. Node keys: NIST P-384 in OpenSSH format, which Flower's node authentication takes.
Private keys are readable by their owner alone.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedsim.errors import FedsimError

LOCAL_NAMES = ("localhost", "127.0.0.1")
_OLDER = datetime.timedelta(minutes=5)  # for clocks that are behind


@dataclass(frozen=True)
class Credentials:
    """The files of a folder that `fedsim certs` has written."""

    folder: Path

    @property
    def authority(self) -> Path:
        """Certificate of the authority, which all parties have."""
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        """Certificate of the SuperLink."""
        return self.folder / "server.crt"

    @property
    def key(self) -> Path:
        """Private key of the SuperLink."""
        return self.folder / "server.key"

    def node_key(self, client: int) -> Path:
        """Return the private key of a client's SuperNode."""
        return self.folder / f"node-{client}"

    def public_key(self, client: int) -> Path:
        """Return the public key of a client's SuperNode, which the SuperLink has to know."""
        return self.folder / f"node-{client}.pub"

    def check(self, clients: int | None) -> None:
        """Refuse a folder that lacks what a private SuperLink and so many SuperNodes need; None for the authority alone.

        Raises:
            FedsimError: names the first missing file.
        """
        needed = [self.authority]
        if clients is not None:
            needed += [self.certificate, self.key]
            needed += [path for client in range(clients) for path in (self.node_key(client), self.public_key(client))]
        for path in needed:
            if not path.is_file():
                raise FedsimError(
                    f"--tls: {path}: no such file. Make all of them: fedsim certs NEW_FOLDER --clients {clients or 'COUNT'}."
                )


def make(folder: Path, clients: int, names: Sequence[str] = (), days: int = 365) -> Credentials:
    """Write new certificates and keys into a new or empty folder.

    Args:
        folder: where.
        clients: how many SuperNodes there are.
        names: host names and addresses of the SuperLink, in addition to localhost and 127.0.0.1.
        days: for how long the certificates hold.

    Raises:
        FedsimError: something is in the folder, or a name is none.
    """
    alternatives = [_alternative(name) for name in dict.fromkeys((*LOCAL_NAMES, *names))]
    folder = folder.absolute()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise FedsimError(f"{folder}: something is in it, and keys are never overwritten. Name a new folder.")
    made = Credentials(folder)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim authority")])
    authority = (
        _builder(authority_name, authority_name, authority_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    server_key = ec.generate_private_key(ec.SECP256R1())
    server_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedsim SuperLink")])
    server = (
        _builder(server_name, authority_name, server_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    # The key of the authority is needed by nobody once it has signed, so it is not kept.
    made.authority.write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    made.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
    _write_private(made.key, server_key, serialization.PrivateFormat.PKCS8)
    for client in range(clients):
        node_key = ec.generate_private_key(ec.SECP384R1())
        _write_private(made.node_key(client), node_key, serialization.PrivateFormat.OpenSSH)
        public = node_key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        made.public_key(client).write_bytes(public + b"\n")
    return made


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _OLDER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    parts = name.split(".")
    is_host = name.isascii() and len(name) <= 253 and all(_is_label(part) for part in parts)
    if not is_host:
        raise FedsimError(
            f"--name: {name!r:.80} is no host name and no address. Expected one such as superlink or 10.0.0.5."
        )
    return x509.DNSName(name)


def _is_label(part: str) -> bool:
    return 0 < len(part) <= 63 and part.replace("-", "").replace("_", "").isalnum() and part[0] != "-" != part[-1]


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    content = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
