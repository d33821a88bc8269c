"""Who we are to the store, how we reach it, and that no message gives a credential away."""

import datetime
import ipaddress
import json
import logging
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from rekindle.checkpoint import InvalidLocation, Store
from rekindle.checkpoint.objects.interface import (
    AccessDenied,
    InvalidCredentials,
    StoreError,
    Unreachable,
)
from rekindle.checkpoint.objects.s3 import S3Objects, mask

pytestmark = pytest.mark.servers

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
TOKEN = "FwoGZXIvYXdzEJr//////////wEaDGV4YW1wbGU="
KEY = "AKIAIOSFODNN7EXAMPLE"
LIST = b"<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>"


class Server:
    """Answers what `reply` says and remembers the requests."""

    def __init__(self, reply=None, context=None):
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            disable_nagle_algorithm = True  # headers and body are two packets
            protocol_version = "HTTP/1.1"

            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                outer.requests.append((self.command, self.path, dict(self.headers)))
                status, body = (reply or (lambda *_: (200, LIST)))(self.command, self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("x-aws-ec2-metadata-token-ttl-seconds", "60")
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = answer

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context is not None:
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_port
        self.url = f"http{'s' if context else ''}://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def identity(self) -> str:
        """The access key that signed the last request."""
        return self.requests[-1][2]["Authorization"].split("Credential=")[1].split("/")[0]


@pytest.fixture
def serve():
    servers = []

    def start(*args, **kwargs) -> Server:
        servers.append(Server(*args, **kwargs))
        return servers[-1]

    yield start
    for one in servers:
        one.server.shutdown()
        one.server.server_close()


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """No credentials from anywhere."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    return tmp_path


def test_credentials_come_from_the_environment(serve):
    server = serve()
    Store.open("s3://bucket/x", endpoint_url=server.url).commits()
    assert server.identity == "AKIDTESTTESTTEST"


def test_credentials_region_and_endpoint_come_from_a_profile(serve, nobody):
    server = serve()
    (nobody / "credentials").write_text(
        f"[team]\naws_access_key_id={KEY}\naws_secret_access_key={SECRET}\n"
    )
    (nobody / "config").write_text(
        f"[profile team]\nregion=eu-central-1\nendpoint_url={server.url}\n"
    )
    store = Store.open("s3://bucket/x", profile="team")
    assert store.objects.endpoint == server.url
    store.commits()
    assert server.identity == KEY
    assert "/eu-central-1/s3/" in server.requests[-1][2]["Authorization"]
    assert server.requests[-1][1].startswith("/bucket?"), "not AWS, so path-style"


def test_a_profile_that_does_not_exist_is_named(nobody):
    with pytest.raises(InvalidCredentials, match="profile.*nope.*could not be found"):
        Store.open("s3://bucket/x", profile="nope")


def test_credentials_come_from_a_web_identity(serve, nobody, endpoint, monkeypatch):
    server = serve()
    (nobody / "token").write_text("eyJhbGciOi.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(nobody / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", endpoint)
    store = Store.open("s3://bucket/x", endpoint_url=server.url)
    store.commits()
    assert server.identity.startswith("ASIA")
    assert "X-Amz-Security-Token" in server.requests[-1][2]
    secrets = store.objects._session.get_credentials().get_frozen_credentials()
    assert secrets.secret_key not in store.objects._scrub(f"bad key {secrets.secret_key} here")


def test_a_web_identity_that_is_refused_is_explained(serve, nobody, monkeypatch):
    denied = b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
    sts = serve(lambda *_: (403, denied))
    (nobody / "token").write_text("eyJhbGciOi.token")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(nobody / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/training")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", sts.url)
    with pytest.raises((AccessDenied, InvalidCredentials)) as caught:
        Store.open("s3://bucket/x", endpoint_url=sts.url).commits()
    assert "eyJhbGciOi" not in str(caught.value)


def test_credentials_come_from_the_instance(serve, nobody, monkeypatch):
    expires = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=2)).isoformat()
    given = {
        "Code": "Success",
        "AccessKeyId": "ASIAINSTANCE12345678",
        "SecretAccessKey": SECRET,
        "Token": TOKEN,
        "Expiration": expires[:19] + "Z",
    }

    def metadata(method, path):
        if path.endswith("/security-credentials/"):
            return 200, b"role"
        return 200, json.dumps(given).encode() if "security-credentials" in path else b"token"

    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", serve(metadata).url)
    server = serve()
    Store.open("s3://bucket/x", endpoint_url=server.url).commits()
    assert server.identity == "ASIAINSTANCE12345678"


@pytest.mark.parametrize(
    ("addressing", "url"),
    [
        (None, "http://minio:9000/bucket/a"),
        ("path", "http://minio:9000/bucket/a"),
        ("virtual", "http://bucket.minio:9000/a"),
    ],
)
def test_addressing_is_path_style_unless_asked_otherwise(addressing, url):
    objects = S3Objects("bucket", endpoint_url="http://minio:9000", addressing=addressing)
    seen = []

    def stop(request, **_):
        seen.append(request.url)
        raise ConnectionError("far enough")

    objects._client.meta.events.register("before-send.s3", stop)
    with pytest.raises(StoreError):
        objects.get("a")
    assert seen[0] == url
    with pytest.raises(ValueError, match="store.addressing is 'dns': allowed are"):
        S3Objects("bucket", addressing="dns")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A private CA, and a server context with a certificate of it for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("ca")
    now = datetime.datetime.now(datetime.UTC)

    def name(text):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def certificate(subject, issuer, key, signer, *extensions):
        builder = (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(signer, hashes.SHA256())

    root, leaf = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    constraints = x509.BasicConstraints(ca=True, path_length=None)
    own = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    pem = serialization.Encoding.PEM
    (folder / "ca.pem").write_bytes(
        certificate("test ca", "test ca", root, root, constraints).public_bytes(pem)
    )
    (folder / "server.pem").write_bytes(
        certificate("server", "test ca", leaf, root, own).public_bytes(pem)
        + leaf.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    return str(folder / "ca.pem"), context


def test_a_private_ca_is_trusted_when_it_is_named(serve, authority, monkeypatch):
    bundle, context = authority
    server = serve(context=context)
    assert Store.open("s3://bucket/x", endpoint_url=server.url, ca_bundle=bundle).commits() == []
    monkeypatch.setenv("AWS_CA_BUNDLE", bundle)
    assert Store.open("s3://bucket/x", endpoint_url=server.url).commits() == []


def test_an_unknown_ca_is_refused_with_what_to_do(serve, authority, monkeypatch):
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
    server = serve(context=authority[1])
    store = Store.open("s3://bucket/x", endpoint_url=server.url)
    with pytest.raises(Unreachable, match="TLS to https://.*AWS_CA_BUNDLE names your CA"):
        store.objects.impatient().list("")
    assert server.requests == []


def test_a_ca_bundle_that_is_not_there_is_named(monkeypatch):
    with pytest.raises(StoreError, match="the CA bundle /nowhere/ca.pem: there is no such file"):
        Store.open("s3://bucket/x", ca_bundle="/nowhere/ca.pem")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/elsewhere/ca.pem")
    with pytest.raises(StoreError, match="/elsewhere/ca.pem"):
        Store.open("s3://bucket/x")


CALLS = {
    "put": lambda o: o.put("a", b"x", if_none_match=True),
    "get": lambda o: o.get("a"),
    "get_into": lambda o: o.get_into("a", memoryview(bytearray(4))),
    "head": lambda o: o.head("a"),
    "list": lambda o: o.list(""),
    "delete": lambda o: o.delete("a", if_match="x"),
    "delete_many": lambda o: o.delete_many(["a"]),
    "try_upload": lambda o: o.try_upload("a"),
    "abandon_uploads": lambda o: o.abandon_uploads("", older_than=0),
}


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "InvalidRequest"),
        (401, "Unauthorized"),
        (403, "SignatureDoesNotMatch"),
        (403, "AccessDenied"),
        (404, "NoSuchBucket"),
        (409, "OperationAborted"),
        (412, "PreconditionFailed"),
        (501, "NotImplemented"),
    ],
)
def test_no_error_log_or_representation_shows_a_credential(
    status, code, serve, monkeypatch, caplog
):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    said = f"key {KEY}, secret={SECRET} token '{TOKEN}' X-Amz-Signature=abcdef0123 {SECRET}."
    body = f"<Error><Code>{code}</Code><Message>{said}</Message></Error>".encode()
    server = serve(lambda *_: (status, body))
    caplog.set_level(logging.DEBUG, logger="rekindle")
    store = Store.open("s3://bucket/x", endpoint_url=server.url)
    texts = [repr(store), repr(store.objects), str(vars(store).get("commit"))]
    for name, call in CALLS.items():
        with pytest.raises(StoreError) as caught:
            call(store.objects)
        texts.append(f"{name}: {caught.value}")
    texts += [record.getMessage() for record in caplog.records if record.name.startswith("rek")]
    for text in texts:
        for secret in (KEY, SECRET, TOKEN, "abcdef0123"):
            assert secret not in text


@pytest.mark.parametrize("by", ["argument", "environment", "profile"])
def test_an_endpoint_with_a_password_is_refused_wherever_it_comes_from(by, monkeypatch, tmp_path):
    url, options = "http://user:hunter2hunter2@minio:9000", {}
    if by == "argument":
        options["endpoint_url"] = url
    elif by == "environment":
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", url)
    else:
        (tmp_path / "config").write_text(f"[default]\nendpoint_url = {url}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    with pytest.raises(InvalidLocation, match="the endpoint URL holds credentials, .*AWS_ACC") as e:
        Store.open("s3://bucket/x", **options)
    assert "hunter2" not in str(e.value)


def test_only_whole_words_of_reasonable_length_are_masked():
    assert mask("s3://a/data at a", ["a"]) == "s3://a/data at a"
    assert mask("the password is set", ["password"]) == "the *** is set"
    assert mask("passwords differ", ["password"]) == "passwords differ"
    assert mask("key=verysecret&x", ["verysecret", None, ""]) == "key=***&x"
    assert mask("https://u:p@host/x", []) == "https://***@host/x"
