"""Every guard that is taken out by name, and the tests that must notice that it is gone."""

from typing import NamedTuple


class Guard(NamedTuple):
    """A piece of code that keeps a promise.

    `code` stands once in the file `path`, and is replaced by `without`; at least one of `tests`,
    which are pytest's arguments, must then fail.
    """

    name: str
    path: str
    code: str
    without: str
    tests: tuple[str, ...]

    def remove_from(self, text: str) -> str:
        """Return the text of the file without the guard; ValueError where it is not there once."""
        if text.count(self.code) != 1:
            raise ValueError(f"{self.name}: {self.path} has its code {text.count(self.code)} times")
        return text.replace(self.code, self.without)


GUARDS: tuple[Guard, ...] = (
    Guard(
        "authentication before the body",
        "astralog/intake/acceptor.py",
        'token = self._tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        'environ["wsgi.input"].read(1); '
        'token = self._tokens.authenticate(environ.get("HTTP_AUTHORIZATION"))',
        ("tests/functional/test_contract.py", "-k", "rejected_before_the_body_is_read"),
    ),
    Guard(
        "one heavy decode at a time",
        "astralog/intake/lanes.py",
        "self._semaphore = Semaphore()",
        "self._semaphore = Semaphore(200)",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "others are served between heavy decodes",
        "astralog/intake/lanes.py",
        "PAUSE_SECONDS = 1e-6",
        "PAUSE_SECONDS = 0",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "bound on the wait for a turn",
        "astralog/intake/lanes.py",
        "timeout=max(deadline - time.monotonic(), 0)",
        "timeout=1",
        ("tests/unit/intake/test_lanes.py",),
    ),
    Guard(
        "bound on invalid logs",
        "astralog/intake/invalid_logs.py",
        "return self.count >= COUNTED_LOGS",
        "return False",
        ("tests/unit/intake/test_schema.py", "tests/unit/intake/test_options.py"),
    ),
    Guard(
        "bound on what a body grows to",
        "astralog/intake/batch.py",
        "if size > MAX_GROWTH * len(body) + formats.PIECE_BYTES:",
        "if False:",
        ("tests/unit/intake/test_options.py", "-k", "grow"),
    ),
    Guard(
        "memory charged for lines that are longer than their body",
        "astralog/intake/acceptor.py",
        "if len(batch.lines) > size:",
        "if False:",
        ("tests/unit/intake/test_acceptor.py",),
    ),
    Guard(
        "fields of one name are not merged",
        "astralog/intake/options.py",
        "if twice := metadata.keys() & log:",
        "if twice := {}:",
        ("tests/unit/intake/test_options.py", "-k", "metadata_has_already"),
    ),
    Guard(
        "checksum of a metrics snapshot",
        "astralog/telemetry/slots.py",
        "is_whole = len(data) == size and checksum == _checksum(writes, data)",
        "is_whole = len(data) == size and checksum is not None",
        ("tests/unit/telemetry/test_slots.py", "-k", "half_a_write"),
    ),
    Guard(
        "second look at a metrics slot that is written to",
        "astralog/telemetry/slots.py",
        "if None not in halves or halves == before:",
        "if True:",
        ("tests/unit/telemetry/test_slots.py", "-k", "never_goes_back"),
    ),
    Guard(
        "counts of dead workers",
        "astralog/telemetry/slots.py",
        "self._before = decode(data).without_gauges() if data else EMPTY",
        "self._before = EMPTY",
        ("tests/unit/telemetry/test_slots.py", "-k", "carries_on"),
    ),
    Guard(
        "heartbeats in memory",
        "astralog/server/gunicorn_settings.py",
        "heartbeat.keep_in_memory()",
        "heartbeat.make_heartbeat",
        ("tests/functional/test_full_memory.py", "-k", "later"),
    ),
    Guard(
        "sync before the answer",
        "astralog/store/segment_writer.py",
        'if self._sync_mode == "always" or self._is_sync_due(segment):',
        "if self._is_sync_due(segment):",
        ("tests/unit/store/test_segment_writer.py",),
    ),
    Guard(
        "a segment in its place before the answer",
        "astralog/store/segment_writer.py",
        "            segment.check_in_place()\n            segment.accept(",
        "            segment.accept(",
        (
            "tests/unit/store/test_segment_writer_faults.py",
            "-k",
            "removed_under",
        ),
    ),
    Guard(
        "whatever interrupts a write undoes it",
        "astralog/store/segment_writer.py",
        "            segment.accept(size, len(buffers))\n        except BaseException:",
        "            segment.accept(size, len(buffers))\n        except OSError:",
        (
            "tests/unit/store/test_segment_writer_faults.py",
            "-k",
            "undoes_it",
        ),
    ),
    Guard(
        "truncate to what was accepted",
        "astralog/store/segment.py",
        "            os.ftruncate(self._fd, self.size)",
        "            pass",
        ("tests/unit/store/test_segment_writer_faults.py",),
    ),
    Guard(
        "a file that cannot be truncated is held",
        "astralog/store/segment_writer.py",
        "            self._untruncated.append(segment)\n",
        "            segment.close()\n            self._remember(segment)\n",
        (
            "tests/unit/store/test_segment_writer_faults.py",
            "-k",
            "no_recovery",
        ),
    ),
    Guard(
        "a segment that is gone is looked for again",
        "astralog/store/segment_writer.py",
        "            if self._unsealed[path] and not was_sealed:\n                return\n",
        "",
        (
            "tests/unit/store/test_segment_writer_faults.py",
            "-k",
            "directory_was_away",
        ),
    ),
    Guard(
        "a good sync ends a doubt",
        "astralog/store/segment_writer.py",
        "        if was_dirty:\n            self._is_sync_doubtful = False",
        "        self._is_sync_doubtful = False",
        (
            "tests/unit/store/test_segment_writer_faults.py",
            "-k",
            "until_one_is_good",
        ),
    ),
    Guard(
        "a seal replaces no file",
        "astralog/store/files.py",
        "*arguments, _RENAME_NOREPLACE",
        "*arguments, 0",
        (
            "tests/unit/store/test_files.py",
            "-k",
            "replaces_no_file",
        ),
    ),
    Guard(
        "a seal replaces no file where the system cannot tell",
        "astralog/store/files.py",
        "if os.path.lexists(target):",
        "if False:",
        (
            "tests/unit/store/test_files.py",
            "-k",
            "replaces_no_file",
        ),
    ),
    Guard(
        "the name of a sealed segment is synced",
        "astralog/store/files.py",
        "        path.unlink()\n    sync_directory(path.parent)",
        "        path.unlink()",
        (
            "tests/unit/store/test_files.py",
            "-k",
            "seal_is_synced",
        ),
    ),
    Guard(
        "the name of a new segment is synced",
        "astralog/store/segment.py",
        "        self.check_in_place()\n        files.sync_directory(self.path.parent)",
        "        self.check_in_place()",
        ("tests/unit/store/test_segment_writer.py",),
    ),
    Guard(
        "the parents of the data directory are synced",
        "astralog/store/files.py",
        "            sync_directory(directory)\n",
        "            pass\n",
        (
            "tests/unit/store/test_files.py",
            "-k",
            "durable",
        ),
    ),
    Guard(
        "search for holes at a recovery",
        "astralog/store/recovery.py",
        'hole = block.find(b"\\0")',
        "hole = -1",
        ("tests/unit/store/test_recovery.py",),
    ),
    Guard(
        "a recovery leaves alone what is held",
        "astralog/store/recovery.py",
        "        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "",
        ("tests/unit/store/test_recovery.py",),
    ),
    Guard(
        "a batch gives its memory back once",
        "astralog/store/batch_queue.py",
        "        if queued.state is not State.FINISHED:\n            queued.state",
        "        if True:\n            queued.state",
        (
            "tests/unit/store/test_commit_queue.py",
            "-k",
            "gives_its_memory_back_once",
        ),
    ),
    Guard(
        "what waits in vain leaves the queue",
        "astralog/store/batch_queue.py",
        "            self._queue.get_nowait()\n\n    def _first",
        "            break\n\n    def _first",
        (
            "tests/unit/store/test_commit_queue.py",
            "-k",
            "pile_up",
        ),
    ),
    Guard(
        "retention waits until all is known",
        "astralog/store/housekeeper.py",
        "            yield from _at_once(inventory.measure())\n",
        "            inventory.measure()\n",
        ("tests/unit/store/test_housekeeper.py",),
    ),
    Guard(
        "retention spares what may not go",
        "astralog/store/retention.py",
        "self._may_remove(name) and self._remove(name)",
        "self._remove(name)",
        (
            "tests/unit/store/test_retention.py",
            "-k",
            "may_not_go",
        ),
    ),
    Guard(
        "a directory that was replaced is another",
        "astralog/store/housekeeper.py",
        '            raise OSError(errno.ESTALE, "the directory was replaced")',
        "            return",
        (
            "tests/unit/store/test_housekeeper.py",
            "-k",
            "replaced",
        ),
    ),
    Guard(
        "rest of a file of tokens",
        "astralog/tokens_file.py",
        "return age >= (REST_SECONDS if is_finished else UNFINISHED_REST_SECONDS)",
        "return age >= REST_SECONDS",
        ("tests/unit/test_tokens_file.py", "-k", "half_written"),
    ),
    Guard(
        "comments in a file of tokens",
        "astralog/tokens_file.py",
        'if word.startswith(b"#"):',
        "if False:",
        ("tests/unit/test_tokens_file.py", "-k", "token_and_its_projects"),
    ),
    Guard(
        "one line for a token",
        "astralog/auth.py",
        "tokens_file.check_distinct(tokens)",
        "tokens.sort()",
        ("tests/unit/test_auth.py", "-k", "two_places"),
    ),
    Guard(
        "tokens read off the hub",
        "astralog/auth.py",
        "gevent.get_hub().threadpool.apply(self._read_changed)",
        "self._read_changed()",
        ("tests/unit/test_auth.py", "-k", "waits_for_the_disk"),
    ),
    Guard(
        "tokens as they are after a faulty reload",
        "astralog/server/inheritance.py",
        """"; ".join(error.problems))
        return
""",
        """"; ".join(error.problems))
""",
        ("tests/unit/server/test_inheritance.py", "-k", "replaces_nothing"),
    ),
    Guard(
        "code of the start in later workers",
        "astralog/server/application.py",
        "sys.modules[name] = module = module_from_spec(spec)",
        "module = module_from_spec(spec)",
        ("tests/unit/server/test_application.py", "-k", "was_there"),
    ),
    Guard(
        "lines of the log for what is rejected",
        "astralog/api/rejection_log.py",
        "silence = self._silences.get(source)",
        "silence = None",
        ("tests/unit/api/test_rejection_log.py", "-k", "one_line_in_a_while"),
    ),
    Guard(
        "clients that are told apart",
        "astralog/api/rejection_log.py",
        "for source in self._silences) >= MAX_SOURCES",
        "for source in self._silences) < 0",
        ("tests/unit/api/test_rejection_log.py", "-k", "crowd"),
    ),
    Guard(
        "escapes in the log",
        "astralog/api/rejection_log.py",
        "return repr(words)[1:-1]",
        "return words",
        ("tests/unit/api/test_rejection_log.py", "-k", "pass_for_the_log"),
    ),
    Guard(
        "bound on a body that nobody reads",
        "astralog/server/request_body.py",
        "while limit > 0 and not",
        "while not",
        ("tests/unit/server/test_request_body.py", "-k", "discarded_up_to_a_limit"),
    ),
    Guard(
        "unread bodies are discarded behind any answer",
        "astralog/server/connection.py",
        "return (request.body.is_finished or self._discard(request.body)) and goes_on",
        "return goes_on",
        ("tests/unit/server/test_connection.py",),
    ),
    Guard(
        "others are served while a body is received",
        "astralog/server/receiver.py",
        "self._time_slice.end_if_over()",
        "pass",
        ("tests/unit/server/test_request_body.py", "-k", "makes_no_one_wait"),
    ),
    Guard(
        "bound on the framing of chunks",
        "astralog/server/receiver.py",
        "if self._received > self._limit:",
        "if False:",
        ("tests/unit/server/test_receiver.py", "tests/unit/server/test_request_body.py"),
    ),
    Guard(
        "bound on a compressed body as it was sent",
        "astralog/intake/body.py",
        "            size += len(chunk)\n",
        "",
        ("tests/unit/intake/test_body.py", "-k", "inflates_to_nothing"),
    ),
    Guard(
        "bound on a head",
        "astralog/server/receiver.py",
        "if len(head) >= MAX_HEAD_BYTES:",
        "if False:",
        ("tests/unit/server/test_receiver.py", "--timeout", "20"),
    ),
    Guard(
        "unfinished heads are accounted for",
        "astralog/server/receiver.py",
        "            hold(searched)\n",
        "",
        ("tests/unit/server/test_receiver.py", "tests/unit/server/test_connection.py"),
    ),
    Guard(
        "time limit on a small response",
        "astralog/server/response.py",
        "        with limits.writes:\n            sent = sock.send(data)",
        "        if True:\n            sent = sock.send(data)",
        ("tests/unit/server/test_response.py", "--timeout", "20"),
    ),
    Guard(
        "time limit on each part of a large response",
        "astralog/server/response.py",
        "            with limits.writes:\n                sock.sendall(view",
        "            if True:\n                sock.sendall(view",
        ("tests/unit/server/test_response.py", "--timeout", "20"),
    ),
    Guard(
        "a little progress is not enough",
        "astralog/server/connection_limits.py",
        "WRITE_STEP_BYTES = 64 * KIB",
        "WRITE_STEP_BYTES = 1",
        ("tests/unit/server/test_response.py", "-k", "too_little", "--timeout", "20"),
    ),
    Guard(
        "large responses that wait are accounted for",
        "astralog/server/response.py",
        "    limits.hold(len(data))\n",
        "    limits.hold(0)\n",
        ("tests/unit/server/test_response.py",),
    ),
    Guard(
        "bound on what connections hold in all",
        "astralog/server/connection_limits.py",
        "while self._held_bytes > self._max_bytes and self._end_longest_untrusted():",
        "while False:",
        ("tests/unit/server/test_connection_limits.py",),
    ),
    Guard(
        "clients with a token keep their connections",
        "astralog/server/connection_limits.py",
        "if self._end_longest_untrusted():",
        "if False:",
        ("tests/unit/server/test_connection_limits.py",),
    ),
    Guard(
        "a full worker makes room",
        "astralog/server/worker.py",
        "while not self._server.limits.make_room():",
        "while False:",
        ("tests/unit/server/test_worker.py",),
    ),
    Guard(
        "files that connections leave to the segments",
        "astralog/server/worker.py",
        "return min(int(self.worker_connections), max(open_files - SPARE_FILES, 1))",
        "return int(self.worker_connections)",
        ("tests/unit/server/test_worker.py",),
    ),
    Guard(
        "connections are left to a worker with less load",
        "astralog/server/worker.py",
        "if self.share.leaves():",
        "if False:",
        ("tests/unit/server/test_worker.py",),
    ),
    Guard(
        "a worker that hangs is not waited for",
        "astralog/server/balance.py",
        "if now - self._left_since > LEAVE_SECONDS:",
        "if False:",
        ("tests/unit/server/test_balance.py", "--timeout", "20"),
    ),
    Guard(
        "busy connections are moved",
        "astralog/server/balance.py",
        "self.moves = self._count_moves(now)",
        "self.moves = 0",
        ("tests/unit/server/test_balance.py",),
    ),
    Guard(
        "the items of a response are closed",
        "astralog/server/connection.py",
        "            if close is not None:\n",
        "            if False:\n",
        ("tests/unit/server/test_connection.py",),
    ),
    Guard(
        "settings that are not heeded stop the start",
        "astralog/server/gunicorn_settings.py",
        "        check_fixed_settings(server.cfg)\n",
        "",
        ("tests/functional/test_settings_start.py", "-k", "in_vain"),
    ),
)
