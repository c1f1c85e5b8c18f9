-- AstraLog's tables on one ClickHouse server, 25.8 or later:
--   clickhouse client --queries-file single.sql
-- `astralog forward` needs only SELECT and INSERT on them.

CREATE TABLE IF NOT EXISTS logs
(
    -- The source of a row: node, segment, and line in the segment.
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
    -- meta is empty if it cannot represent the metadata (a number beyond 64 bits).
    meta JSON MATERIALIZED JSONExtract(metadata, 'JSON') CODEC(ZSTD(3)),

    -- The start of the segment, up to ASTRALOG_SEGMENT_SECONDS before the arrival of a log.
    received DateTime('UTC') MATERIALIZED parseDateTimeBestEffort(substring(segment, 1, 15), 'UTC') CODEC(Delta, ZSTD(1)),

    -- For forward's queries of the lines of a segment.
    INDEX segments segment TYPE bloom_filter GRANULARITY 1,
    INDEX timestamps timestamp TYPE minmax GRANULARITY 1,
    -- A word in a message: WHERE hasAllTokens(message, 'refused'). Before 26.2, use instead
    -- TYPE tokenbf_v1(32768, 3, 0) GRANULARITY 1, with hasToken(message, 'refused').
    INDEX words message TYPE text(tokenizer = 'splitByNonAlpha')
)
ENGINE = MergeTree
-- By the day of arrival, not of the event: for any clocks and backfills, an insert is one part,
-- which is stored completely or not at all, and old days are dropped as a whole.
PARTITION BY substring(segment, 1, 8)
ORDER BY (project_id, service, timestamp)
TTL received + INTERVAL 1 YEAR
SETTINGS
    -- The number of remembered inserts, of which a repetition is dropped.
    non_replicated_deduplication_window = 10000,
    -- A confirmed insert is on disk.
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    ttl_only_drop_parts = 1;

-- Lines that the table above cannot hold, unchanged, each with the reason: timestamps
-- before 1900, after 2262 or finer than a nanosecond, and lines that an altered table rejects.
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
