"""Certificates for the coordinator: an authority of the operator's own, and what it vouches for.

Pods trust one authority and nobody else, and have its certificate in their job's secret. Its key
stays with the operator, which signs for whatever address it is reached by. The authority lives for
ten years and what it signs for three months, both renewed when a third of that is left: the
authority with the key that it has, so that whoever has the old certificate or the new one believes
what it signs. Keys are on P-256: made in a millisecond.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

AUTHORITY_LIFE = timedelta(days=3650)
LIFE = timedelta(days=90)
SKEW = timedelta(hours=1)
"""Clocks of pods may be behind."""


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, both PEM."""

    certificate: str
    key: str


def authority(now: datetime) -> Pair:
    """A new authority."""
    return _authority(ec.generate_private_key(ec.SECP256R1()), now)


def renewed(old: Pair, now: datetime) -> Pair:
    """The same authority, with its life from now on."""
    return _authority(_key(old), now)


def check(pair: Pair, called: str) -> None:
    """Raise ValueError, naming where it is kept, unless it is an authority that can sign."""
    wrong = f"{called} holds no authority of the operator; delete it to have a new one made"
    try:
        certificate, key = x509.load_pem_x509_certificate(pair.certificate.encode()), _key(pair)
    except ValueError as error:
        raise ValueError(f"{wrong} ({error})") from error
    if certificate.public_key() != key.public_key():
        raise ValueError(f"{wrong} (the key is another one's)")


def _authority(key: ec.EllipticCurvePrivateKey, now: datetime) -> Pair:
    name = _name("rekindle coordinator CA")
    made = (
        _begun(name, name, key, now, AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return _pair(made, key)


def issue(by: Pair, hosts: Sequence[str], now: datetime) -> Pair:
    """A certificate for a server that is reached by these names and addresses."""
    issuer = x509.load_pem_x509_certificate(by.certificate.encode())
    signer = _key(by)
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        _begun(_name("rekindle coordinator"), issuer.subject, key, now, LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([*map(_alternative, hosts)]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
        .sign(signer, hashes.SHA256())
    )
    return _pair(made, key)


def due(certificate: str, now: datetime) -> bool:
    """Whether less than a third of its life is left."""
    found = x509.load_pem_x509_certificate(certificate.encode())
    life = found.not_valid_after_utc - found.not_valid_before_utc
    return found.not_valid_after_utc - now < life / 3


def _key(pair: Pair) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pair.key.encode(), password=None)
    except TypeError as error:  # it has a password
        raise ValueError(str(error)) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError("its key is not one of an elliptic curve")
    return key


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    now: datetime,
    life: timedelta,
) -> x509.CertificateBuilder:
    now = now.astimezone(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _name(words: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, words)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


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


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    return Pair(
        certificate=certificate.public_bytes(serialization.Encoding.PEM).decode(),
        key=key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ).decode(),
    )
