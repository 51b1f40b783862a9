"""An encrypted line to a mail gateway (I/O on a socket), by the OpenSSL that cryptography carries anyway.

The host runtime has no `ssl`: that would be a second OpenSSL, 1.8 MB in an initramfs of 12 MiB. The functions are those
that pyOpenSSL calls, through the same binding, so cryptography keeps them. Nobody's certificate is checked: no
authorities are known here, and the gateway came with a signed order. This keeps listeners out, no more.
"""

from __future__ import annotations

import io
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

PIECE = 16384
"""Bytes at a time; a TLS record holds no more."""


class Encrypted:
    """A connected socket with TLS over it; what smtplib uses of a socket. Failures of either are OSError."""

    def __init__(self, sock: socket.socket, name: str) -> None:
        """Do the handshake; `name` is told to the gateway (RFC 6066 server name)."""
        from cryptography.hazmat.bindings.openssl.binding import Binding

        # the binding is C without types: nothing of it leaves this class
        self._lib: Any = Binding.lib
        self._ffi: Any = Binding.ffi
        self._socket = sock
        lib = self._lib
        context = self._ffi.gc(self._some(lib.SSL_CTX_new(lib.TLS_client_method())), lib.SSL_CTX_free)
        self._ssl = self._ffi.gc(self._some(lib.SSL_new(context)), lib.SSL_free)
        self._coming, self._going = self._some(lib.BIO_new(lib.BIO_s_mem())), self._some(lib.BIO_new(lib.BIO_s_mem()))
        lib.SSL_set_bio(self._ssl, self._coming, self._going)  # they are freed with it
        lib.SSL_set_tlsext_host_name(self._ssl, name.encode("ascii", "replace"))
        lib.SSL_set_connect_state(self._ssl)
        self._do(lambda: lib.SSL_do_handshake(self._ssl))

    def _some(self, made: Any) -> Any:
        if made == self._ffi.NULL:
            raise OSError(self._reason())
        return made

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        for start in range(0, len(data), PIECE):
            piece = data[start:start + PIECE]
            self._do(lambda piece=piece: self._lib.SSL_write(self._ssl, piece, len(piece)))  # type: ignore[misc]

    def receive(self, most: int) -> bytes:
        """Return the next bytes, b"" when the gateway has ended the encryption."""
        buffer = self._ffi.new("char[]", most)
        got = self._do(lambda: self._lib.SSL_read(self._ssl, buffer, most))
        return bytes(self._ffi.buffer(buffer, got)) if got > 0 else b""

    def _do(self, step: Callable[[], int]) -> int:
        """Repeat a step of OpenSSL, carrying bytes between it and the socket, until it is done; 0: all was said."""
        lib = self._lib
        while True:
            lib.ERR_clear_error()
            result = step()
            error = lib.SSL_get_error(self._ssl, result)
            self._flush()
            if result > 0:
                return result
            if error == lib.SSL_ERROR_ZERO_RETURN:
                return 0
            if error != lib.SSL_ERROR_WANT_READ:
                raise OSError(self._reason())
            data = self._socket.recv(PIECE)
            if not data:
                raise OSError("the gateway hung up amid the encryption")
            lib.BIO_write(self._coming, data, len(data))

    def _flush(self) -> None:
        buffer = self._ffi.new("char[]", PIECE)
        while (got := self._lib.BIO_read(self._going, buffer, PIECE)) > 0:
            self._socket.sendall(bytes(self._ffi.buffer(buffer, got)))

    def _reason(self) -> str:
        text = self._lib.ERR_reason_error_string(self._lib.ERR_get_error())
        return "the encryption failed" if text == self._ffi.NULL else self._ffi.string(text).decode("ascii", "replace")

    # -- the rest of a socket, as smtplib uses it ------------------------------------------------------------

    def makefile(self, mode: str = "rb") -> io.BufferedReader:
        """Return a file to read from."""
        return io.BufferedReader(_Reader(self))

    def shutdown(self, how: int) -> None:
        """Cut the line."""
        self._socket.shutdown(how)

    def close(self) -> None:
        """Close the line."""
        with suppress(OSError):
            self._socket.close()


class _Reader(io.RawIOBase):
    def __init__(self, line: Encrypted) -> None:
        self._line = line

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        data = self._line.receive(min(len(view), PIECE))
        view[:len(data)] = data
        return len(data)
