"""Numba's cache on disk, kept from doing harm.

By itself Numba lets whatever is wrong with a file of its cache end the call: a file that a crash or
a full disk has cut short then ends it in every later process, too. It also takes what it finds at
its word, as machine code: a file with a hole in it crashes the process, and one that another
process is just replacing may be of other sources, or for another processor.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from typing import Any

_log = logging.getLogger("numba_swap")
_told: set[str] = set()


def cache_on_disk(dispatcher: Any) -> None:
    """Let a function that Numba is about to compile be kept on disk, if that is possible.

    What cannot be read is compiled, and put in place of what was there. What cannot be written is
    compiled in every process. Either is said once in the log, and is no error.

    Parameters
    ----------
    dispatcher : Dispatcher
        What `numba.njit` or `numba.cuda.jit` made of a function, nothing being compiled yet.
    """
    try:
        dispatcher.enable_caching()
    except Exception as error:  # of any folder: not writable, no such name in this locale, ...
        _warn("no folder can be used", _words(error))
        return
    cache = dispatcher._cache
    cache._cache_file = _SealedFile(cache._cache_file)
    cache.load_overload = _load_if_sound(cache.load_overload, cache)
    cache.save_overload = _save_if_possible(cache.save_overload, cache)


class _SealedFile:
    """The files of one function; what is loaded is what was saved, under the very same key.

    Parameters
    ----------
    file : IndexDataCacheFile
        Numba's.
    """

    def __init__(self, file: Any) -> None:
        self._file = file

    def load(self, key: Any) -> Any:
        entry = self._file.load(key)
        if entry is None:
            return None
        *seal, payload = entry
        if seal != self._seal(key, payload):
            raise ValueError("its contents are not what was saved")
        return pickle.loads(payload)  # noqa: S301 -- as much to be trusted as Python's own cache

    def save(self, key: Any, data: Any) -> None:
        payload = self._file._dump(data)
        if not self._has_sound_index():
            self.flush()
        self._file.save(key, (*self._seal(key, payload), payload))

    def flush(self) -> None:
        self._file.flush()

    def _seal(self, key: Any, payload: bytes) -> list[Any]:
        return [self._file._source_stamp, key, hashlib.sha256(payload).digest()]

    def _has_sound_index(self) -> bool:
        try:
            return all(isinstance(name, str) for name in self._file._load_index().values())
        except Exception:  # whatever unpickling may raise
            return False


def _load_if_sound(load: Any, cache: Any) -> Any:
    def load_overload(signature: Any, context: Any) -> Any:
        try:
            return load(signature, context)
        except Exception as error:  # whatever unpickling, or building from wrong parts, may raise
            _warn(f"a file in {cache.cache_path} cannot be used", _words(error))
            return None

    return load_overload


def _save_if_possible(save: Any, cache: Any) -> Any:
    def save_overload(signature: Any, compiled: Any) -> None:
        try:
            save(signature, compiled)
        except Exception as error:  # a full disk, a quota, a folder taken away, ...
            _warn(f"nothing can be written to {cache.cache_path}", _words(error))

    return save_overload


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _warn(what: str, why: str) -> None:
    if what in _told:  # of another function
        return
    _told.add(what)
    _log.warning(
        "Numba's cache on disk: %s (%s). What is not found there is compiled anew, which takes "
        "seconds in all. NUMBA_CACHE_DIR names another folder.",
        what,
        why,
    )
