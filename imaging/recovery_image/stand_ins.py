"""What is left out of the host runtime on purpose, and the few modules that are replaced to make that possible. Pure.

Every entry says why: a library is used as it is unless a measurement spoke against it
(docs/adr/0005-host-runtime.md).
"""

from __future__ import annotations

EXCLUDED: dict[str, str] = {
    "_ssl": "needs another OpenSSL of 5 MiB; content is trusted by signature, mail has recovery.starttls",
    "ssl": "see _ssl; http.client works without it",
    "_hashlib": "needs the same OpenSSL; hashlib falls back to the interpreter's own digests",
    "urllib3": "tuf's default fetcher; the catalogue is fetched over plumbing.http",
    "requests": "tuf's older default fetcher",
    "zstandard._cffi": "the slower twin of zstandard.backend_c, 12 MiB",
    "zstandard.backend_cffi": "see zstandard._cffi",
    "cffi": "only _cffi_backend is needed, by cryptography",
    "pycparser": "see cffi",
    "sitecustomize": "the runtime has its own", "usercustomize": "never on hosts",
    "_pydatetime": "Python twin of a C module that is carried",
    "_pydecimal": "Python twin of a C module that is carried",
    "_pyio": "Python twin of a C module that is carried",
    "bcrypt": "passphrases of OpenSSH keys; not used",
    "typing_extensions": "needed by libraries on older interpreters only",
    "nacl": "an optional back end of securesystemslib",
    "asn1crypto": "an optional back end of securesystemslib",
    "boto3": "cloud signers of securesystemslib", "botocore": "cloud signers of securesystemslib",
    "azure": "cloud signers of securesystemslib", "google": "cloud signers of securesystemslib",
    "hvac": "cloud signers of securesystemslib", "PyKCS11": "hardware signers of securesystemslib",
    "sigstore": "a signer of securesystemslib", "pyspx": "a signer of securesystemslib",
    "pwdlib": "not used", "IPython": "interactive", "psutil": "an optional part of pyroute2",
    "mitogen": "an optional part of pyroute2",
}
"""Module -> why neither it nor anything below it is ever carried."""

_FETCHER = '''
"""Stands in for tuf's urllib3 fetcher in the host runtime; the catalogue is fetched by imaging.trusted's own."""
from tuf.ngclient.fetcher import FetcherInterface


class Urllib3Fetcher(FetcherInterface):
    def __init__(self, *args, **kwargs):
        raise RuntimeError("the host runtime carries no urllib3; give tuf.ngclient.Updater a fetcher")

    def _fetch(self, url):
        raise NotImplementedError
'''

REPLACED: dict[str, tuple[str, str]] = {
    "tuf.ngclient.urllib3_fetcher": (_FETCHER, "tuf imports it always; the real one needs urllib3"),
}
"""Module -> the source carried in its place, and why."""
