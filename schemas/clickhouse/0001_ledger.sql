-- The ledger. Rows are only ever added. One event is one row, whichever topic it came by.
--
-- An insert is atomic only within one partition of the table, so the sink never lets an insert span two days; that is
-- what makes max(offset) a truthful fence. Deduplication by the insert's token covers an insert whose answer was lost.
-- fsync: the offsets that are stored are never read again from the log, so a stored row must survive a power cut.
CREATE TABLE IF NOT EXISTS events
(
    `topic`               LowCardinality(String),
    `partition`           UInt32,
    `offset`              UInt64 CODEC(Delta, ZSTD(1)),
    `producer`            String CODEC(ZSTD(1)),
    `sequence`            UInt64 CODEC(Delta, ZSTD(1)),
    `type`                LowCardinality(String),
    `transaction_id`      String CODEC(ZSTD(1)),
    `time`                DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),

    -- Who pays. An open dimension is empty.
    `org`                 LowCardinality(String),
    `team`                LowCardinality(String),
    `agent`               LowCardinality(String),
    `user`                LowCardinality(String),
    `project`             LowCardinality(String),
    `session`             String CODEC(ZSTD(1)),
    `environment`         LowCardinality(String),
    `key_id`              LowCardinality(String),
    `tags`                Array(LowCardinality(String)),

    -- What for.
    `vendor`              LowCardinality(String),
    `route`               LowCardinality(String),
    `model_requested`     LowCardinality(String),
    `model_priced`        LowCardinality(String),
    `match`               LowCardinality(String),
    `catalog_version`     LowCardinality(String),
    `config_version`      UInt64 CODEC(Delta, ZSTD(1)),
    `auth_mode`           LowCardinality(String),

    -- The bound at admission (reservations) and how the call ended (settlements).
    `estimate_mode`       LowCardinality(String),
    `input_tokens_bound`  UInt64 CODEC(ZSTD(1)),
    `output_tokens_bound` UInt64 CODEC(ZSTD(1)),
    `expires_at`          DateTime64(3, 'UTC') CODEC(Delta, ZSTD(1)),
    `outcome`             LowCardinality(String),
    `usage_source`        LowCardinality(String),
    `usage`               Map(LowCardinality(String), UInt64),
    `http_status`         UInt64 CODEC(ZSTD(1)),
    `retry_count`         UInt64 CODEC(ZSTD(1)),
    `latency_us`          Map(LowCardinality(String), UInt64),

    -- Money, in nano-dollars. What an event does not say is 0.
    `cost_nano`           Int64 CODEC(ZSTD(1)),
    `held_nano`           Int64 CODEC(ZSTD(1)),
    `booked_nano`         Int64 CODEC(ZSTD(1)),
    `components`          Nested(component LowCardinality(String), quantity UInt64, price_nano_per_million Int64, cost_nano Int64),
    `charges`             Nested(budget_id LowCardinality(String), scope LowCardinality(String), window String),

    -- Why not (denials). The budget's fields are empty or 0 when no budget refused.
    `denial_code`         LowCardinality(String),
    `denial_reason`       String CODEC(ZSTD(1)),
    `estimate_nano`       Int64 CODEC(ZSTD(1)),
    `budget_id`           LowCardinality(String),
    `budget_scope`        LowCardinality(String),
    `budget_limit_nano`   Int64 CODEC(ZSTD(1)),
    `budget_spent_nano`   Int64 CODEC(ZSTD(1)),
    `budget_held_nano`    Int64 CODEC(ZSTD(1)),

    `trace_id`            String CODEC(ZSTD(1)),
    `recorded_at`         DateTime64(3, 'UTC') DEFAULT now64(3) CODEC(Delta, ZSTD(1)),
    -- The bytes of the event as published: what will be hashed and archived.
    `raw`                 String CODEC(ZSTD(3)),

    INDEX by_transaction `transaction_id` TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_producer `producer` TYPE bloom_filter(0.01) GRANULARITY 1
)
ENGINE = MergeTree
PARTITION BY toYYYYMMDD(`time`)
ORDER BY (`org`, `time`, `transaction_id`)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;

-- Offsets that gave no row: known duplicates and what could not be read. With `events` they account for every offset.
CREATE TABLE IF NOT EXISTS skipped
(
    `topic`       LowCardinality(String),
    `partition`   UInt32,
    `offset`      UInt64,
    `reason`      Enum8('duplicate' = 1, 'quarantined' = 2),
    `detail`      String,
    `recorded_at` DateTime64(3, 'UTC') DEFAULT now64(3)
)
ENGINE = MergeTree
ORDER BY (`topic`, `partition`, `offset`)
SETTINGS non_replicated_deduplication_window = 1000, fsync_after_insert = 1, fsync_part_directory = 1;
