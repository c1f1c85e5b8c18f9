-- AstraLog's tables on one ClickHouse server, 25.8 or later:
--   clickhouse client --queries-file single.sql
-- `astralog forward` needs no right but SELECT and INSERT on them.

CREATE TABLE IF NOT EXISTS logs
(
    -- Where a row comes from: which node, which of its segments, and which line of that.
    node LowCardinality(String),
    segment String CODEC(ZSTD(1)),
    line UInt64 CODEC(Delta, ZSTD(1)),

    -- The six fields. Without metadata, a log's metadata is empty; else it is the text as sent.
    project_id LowCardinality(String),
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    level LowCardinality(String),
    service LowCardinality(String),
    message String CODEC(ZSTD(3)),
    metadata String CODEC(ZSTD(3)),

    -- The same for queries: meta.user_id, meta.request.path. The JSON type drops null and {}, and
    -- where it cannot take a metadata at all (a number beyond 64 bits), meta is empty.
    meta JSON MATERIALIZED JSONExtract(metadata, 'JSON') CODEC(ZSTD(3)),

    -- When the segment was started, which is up to ASTRALOG_SEGMENT_SECONDS before a log came in.
    received DateTime('UTC') MATERIALIZED parseDateTimeBestEffort(substring(segment, 1, 15), 'UTC') CODEC(Delta, ZSTD(1)),

    -- For forward's question which lines of a segment are there.
    INDEX segments segment TYPE bloom_filter GRANULARITY 1,
    INDEX timestamps timestamp TYPE minmax GRANULARITY 1,
    -- A word in a message: WHERE hasAllTokens(message, 'refused'). Before 26.2, use instead
    -- TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 1, with hasToken(message, 'refused').
    INDEX words message TYPE text(tokenizer = 'splitByNonAlpha')
)
ENGINE = MergeTree
-- By the day of arrival, not of the event: whatever clocks and backfills say, an insert is one part,
-- which is there as a whole or not at all, and old days go as a whole.
PARTITION BY substring(segment, 1, 8)
ORDER BY (project_id, service, timestamp)
TTL received + INTERVAL 1 YEAR
SETTINGS
    -- Inserts that are remembered, so that a repeated one is dropped.
    non_replicated_deduplication_window = 10000,
    -- An insert that was answered is on the disk.
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    ttl_only_drop_parts = 1;

-- Lines that the table above cannot hold, as they are stored, each with the reason: timestamps
-- before 1900, after 2262 or finer than a nanosecond, and what an altered table rejects.
CREATE TABLE IF NOT EXISTS logs_dead_letter
(
    node LowCardinality(String),
    segment String CODEC(ZSTD(1)),
    line UInt64 CODEC(Delta, ZSTD(1)),
    raw String CODEC(ZSTD(3)),
    error String CODEC(ZSTD(1)),
    received DateTime('UTC') MATERIALIZED parseDateTimeBestEffort(substring(segment, 1, 15), 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = MergeTree
PARTITION BY substring(segment, 1, 8)
ORDER BY (node, segment, line)
TTL received + INTERVAL 1 YEAR
SETTINGS
    non_replicated_deduplication_window = 10000,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    ttl_only_drop_parts = 1;
