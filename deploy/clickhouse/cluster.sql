-- AstraLog's tables on a ClickHouse cluster named `astralog`, with the macros {shard} and {replica}
-- and internal_replication on: run once, on any of its servers. ASTRALOG_CLICKHOUSE_URL may name any
-- of them, or a load balancer. single.sql explains the columns.

CREATE TABLE IF NOT EXISTS logs_local ON CLUSTER astralog
(
    node LowCardinality(String),
    segment String CODEC(ZSTD(1)),
    line UInt64 CODEC(Delta, ZSTD(1)),
    project_id LowCardinality(String),
    timestamp DateTime64(9, 'UTC') CODEC(Delta, ZSTD(1)),
    level LowCardinality(String),
    service LowCardinality(String),
    message String CODEC(ZSTD(3)),
    metadata String CODEC(ZSTD(3)),
    meta JSON MATERIALIZED JSONExtract(metadata, 'JSON') CODEC(ZSTD(3)),
    received DateTime('UTC') MATERIALIZED parseDateTimeBestEffort(substring(segment, 1, 15), 'UTC') CODEC(Delta, ZSTD(1)),
    INDEX segments segment TYPE bloom_filter GRANULARITY 1,
    INDEX timestamps timestamp TYPE minmax GRANULARITY 1,
    INDEX words message TYPE text(tokenizer = 'splitByNonAlpha')
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/astralog/logs', '{replica}')
PARTITION BY substring(segment, 1, 8)
ORDER BY (project_id, service, timestamp)
TTL received + INTERVAL 1 YEAR
SETTINGS
    -- The number of inserts that the replicas remember together.
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    ttl_only_drop_parts = 1;

CREATE TABLE IF NOT EXISTS logs_dead_letter_local ON CLUSTER astralog
(
    node LowCardinality(String),
    segment String CODEC(ZSTD(1)),
    line UInt64 CODEC(Delta, ZSTD(1)),
    raw String CODEC(ZSTD(3)),
    error String CODEC(ZSTD(1)),
    received DateTime('UTC') MATERIALIZED parseDateTimeBestEffort(substring(segment, 1, 15), 'UTC') CODEC(Delta, ZSTD(1))
)
ENGINE = ReplicatedMergeTree('/clickhouse/tables/{shard}/astralog/logs_dead_letter', '{replica}')
PARTITION BY substring(segment, 1, 8)
ORDER BY (node, segment, line)
TTL received + INTERVAL 1 YEAR
SETTINGS
    replicated_deduplication_window = 10000,
    replicated_deduplication_window_seconds = 604800,
    fsync_after_insert = 1,
    fsync_part_directory = 1,
    ttl_only_drop_parts = 1;

-- Rows of one segment go to one shard, so that an insert stays one block, and a repeated one reaches
-- the shard that remembers it. Do not use rand() here.
CREATE TABLE IF NOT EXISTS logs ON CLUSTER astralog
AS logs_local
ENGINE = Distributed(astralog, currentDatabase(), logs_local, cityHash64(node, segment));

CREATE TABLE IF NOT EXISTS logs_dead_letter ON CLUSTER astralog
AS logs_dead_letter_local
ENGINE = Distributed(astralog, currentDatabase(), logs_dead_letter_local, cityHash64(node, segment));
