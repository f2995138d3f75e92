"""Statuses, the exception that carries one, and the log."""

import enum
import logging
import os
import sys

from . import _native
from ._native import last_error


def _make_logger() -> logging.Logger:
    # As the original: to standard output, at the level of ASCEND_GLOBAL_LOG_LEVEL, errors by default.
    logger = logging.getLogger("LLM_ENGINE")
    levels = {"0": logging.DEBUG, "1": logging.INFO, "2": logging.WARNING, "3": logging.ERROR}
    logger.setLevel(levels.get(os.environ.get("ASCEND_GLOBAL_LOG_LEVEL", "3"), logging.ERROR))
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("[%(levelname)s] %(name)s(%(process)d): %(message)s"))
        logger.addHandler(handler)
    logger.propagate = False
    return logger


log = _make_logger()


class LLMStatusCode(enum.IntEnum):
    """What a call answers.  Compare members; the numbers are those of the C library.

    `LLM_WAIT_PROCESS_TIMEOUT` is a timeout in v1 mode, `LLM_TIMEOUT` one in v2 mode.
    """

    LLM_SUCCESS = 0
    LLM_FAILED = 0xFFFFFFFF
    LLM_WAIT_PROCESS_TIMEOUT = 0x5010B001
    LLM_KV_CACHE_NOT_EXIST = 0x5010B002
    LLM_REPEAT_REQUEST = 0x5010B003
    LLM_REQUEST_ALREADY_COMPLETED = 0x5010B004
    LLM_PARAM_INVALID = 0x5010B005
    LLM_ENGINE_FINALIZED = 0x5010B006
    LLM_NOT_YET_LINK = 0x5010B007
    LLM_ALREADY_LINK = 0x5010B008
    LLM_LINK_FAILED = 0x5010B009
    LLM_UNLINK_FAILED = 0x5010B00A
    LLM_NOTIFY_PROMPT_UNLINK_FAILED = 0x5010B00B
    LLM_CLUSTER_NUM_EXCEED_LIMIT = 0x5010B00C
    LLM_PROCESSING_LINK = 0x5010B00D
    LLM_DEVICE_OUT_OF_MEMORY = 0x5010B00E
    LLM_PREFIX_ALREADY_EXIST = 0x5010B00F
    LLM_PREFIX_NOT_EXIST = 0x5010B010
    LLM_SEQ_LENOVERLIMIT = 0x5010B011
    LLM_NO_FREE_BLOCK = 0x5010B012
    LLM_BLOCKS_OUT_OF_MEMORY = 0x5010B013
    # The original has no Python names for these four and answers LLM_FAILED.
    LLM_CACHE_INCOMPATIBLE = 0x5010B014
    LLM_CACHE_KEY_EXIST = 0x5010B015
    LLM_COPY_FAILED = 0x5010B016
    LLM_CACHE_ID_EXIST = 0x5010B017
    LLM_EXIST_LINK = 0x5010B018
    LLM_FEATURE_NOT_ENABLED = 0x5010B019
    LLM_TIMEOUT = 0x5010B01A
    LLM_LINK_BUSY = 0x5010B01B
    LLM_OUT_OF_MEMORY = 0x5010B01C
    # Reserved, as in the original: nothing here returns them.
    LLM_DEVICE_MEM_ERROR = 507053
    LLM_SUSPECT_REMOTE_ERROR = 507057
    # This library's own.
    LLM_TRANSFER_PENDING = 0x5010B801
    LLM_TRANSFER_CANCELLED = 0x5010B802
    LLM_NO_NOTIFICATION = 0x5010B803
    LLM_CACHE_STALE = 0x5010B804
    LLM_LEASE_ACTIVE = 0x5010B805
    LLM_LEASE_EXPIRED = 0x5010B806
    LLM_CHECKSUM_MISMATCH = 0x5010B807
    LLM_NO_LINK_EVENT = 0x5010B808
    LLM_UNKNOWN_ERROR = -1

    def __str__(self) -> str:
        return f"LLMStatusCode.{self.name}"


_CODES = {int(code): code for code in LLMStatusCode}
_NAMES = {int(code): str(code) for code in LLMStatusCode}


def to_code(status: int) -> LLMStatusCode:
    """The member for a number that the C library returned."""
    return _CODES.get(status, LLMStatusCode.LLM_FAILED)


class LLMException(RuntimeError):
    """A logical mistake in an argument, or a failure of the engine.

    `status_code` is an `LLMStatusCode`; `retryable` tells whether the cause can be repaired and the
    call repeated on the same engine.
    """

    def __init__(self, error_info: str = "",
                 status_code: LLMStatusCode = LLMStatusCode.LLM_FAILED) -> None:
        super().__init__(error_info)
        self._status_code = status_code

    @property
    def status_code(self) -> LLMStatusCode:
        """Why it was raised."""
        return self._status_code

    @property
    def retryable(self) -> bool:
        """Can the cause be repaired, and the call repeated?"""
        return self._status_code >= 0 and _native.recoverable(int(self._status_code))


class Status:
    """A status code with `is_ok()`."""

    def __init__(self, status_code: LLMStatusCode) -> None:
        self._status_code = status_code

    @property
    def status_code(self) -> LLMStatusCode:
        """The code."""
        return self._status_code

    def is_ok(self) -> bool:
        """Is it success?"""
        return self._status_code == LLMStatusCode.LLM_SUCCESS

    def __repr__(self) -> str:
        return f"Status({self._status_code})"


def handle_llm_status(status: int, func: str, info: str) -> None:
    """Raises LLMException unless `status`, as the C library returned it, is success.

    The library has logged why: nothing is said twice.
    """
    if status == 0:
        return
    code = to_code(status)
    raise LLMException(f"{func} failed, error code is {_NAMES[code]}, {info}.", code)


def raise_if_false(condition: object, info: str, *args: object,
                   status_code: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID,
                   **kwargs: object) -> None:
    """Raises LLMException with `info`, formatted with the other arguments, unless `condition`."""
    if condition:
        return
    text = info.format(*args, **kwargs) if args or kwargs else info
    log.error(text)
    raise LLMException(text, status_code)


def raise_if_true(condition: object, info: str, *args: object,
                  status_code: LLMStatusCode = LLMStatusCode.LLM_PARAM_INVALID,
                  **kwargs: object) -> None:
    """Raises LLMException with `info`, formatted with the other arguments, if `condition`."""
    if condition:
        raise_if_false(False, info, *args, status_code=status_code, **kwargs)
