"""The certificate of the embedded API server, and the authority that clients know it by.

kubectl sends a credential over TLS only. Both are made at each start and live as long as the
server: the authority signs one certificate and is forgotten, so that nobody can sign another.
"""

import datetime
import ipaddress
import os
import ssl
import tempfile
from collections.abc import Collection
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 3650
NAMES = ("localhost", "kubernetes", "127.0.0.1", "::1")
"""How the server may be called, besides the address that it listens on."""


def serve(addresses: Collection[str], folder: Path) -> tuple[ssl.SSLContext, str]:
    """What a server needs to be known at these addresses, and what its clients need (PEM)."""
    now = datetime.datetime.now(datetime.UTC)
    authority, key = (
        ec.generate_private_key(ec.SECP256R1()),
        ec.generate_private_key(ec.SECP256R1()),
    )
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "embedded cluster")])
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "embedded API server")])

    def begun(name: x509.Name, owner: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(issuer)
            .public_key(owner)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=DAYS))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(owner), critical=False)
        )

    root = (
        begun(issuer, authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [_name(one) for one in dict.fromkeys((*addresses, *NAMES))]
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    leaf = (
        begun(subject, key.public_key())
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(by, critical=False)
        .sign(authority, hashes.SHA256())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    whole = leaf.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    # The library reads files only; this one is its owner's alone, and gone a moment later.
    descriptor, path = tempfile.mkstemp(dir=folder, prefix=".server-")
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(whole)
        context.load_cert_chain(path)
    finally:
        Path(path).unlink()
    return context, root.public_bytes(Encoding.PEM).decode()


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        return x509.DNSName(text)
