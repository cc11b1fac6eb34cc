-- Accounts, what they hold, and their sessions.
-- depends:

CREATE TABLE users (
    id uuid CONSTRAINT users_pkey PRIMARY KEY,
    username text COLLATE "C" NOT NULL
        CONSTRAINT users_username_key UNIQUE
        CONSTRAINT users_username_check CHECK (octet_length(username) BETWEEN 1 AND 255 AND username IS NFC NORMALIZED),
    password_hash text NOT NULL,
    quota_bytes bigint CONSTRAINT users_quota_bytes_check CHECK (quota_bytes >= 0),
    files_bytes bigint NOT NULL DEFAULT 0 CONSTRAINT users_files_bytes_check CHECK (files_bytes >= 0),
    trash_bytes bigint NOT NULL DEFAULT 0 CONSTRAINT users_trash_bytes_check CHECK (trash_bytes >= 0),
    versions_bytes bigint NOT NULL DEFAULT 0 CONSTRAINT users_versions_bytes_check CHECK (versions_bytes >= 0),
    file_count bigint NOT NULL DEFAULT 0 CONSTRAINT users_file_count_check CHECK (file_count >= 0),
    created_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50); -- every upload updates a counter: leave room for HOT updates

CREATE TABLE sessions (
    id uuid CONSTRAINT sessions_pkey PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT sessions_user_id_fkey REFERENCES users ON DELETE CASCADE,
    refresh_sha256 bytea NOT NULL CONSTRAINT sessions_refresh_sha256_check CHECK (octet_length(refresh_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    refreshed_at timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL,
    ended_at timestamptz
);
CREATE INDEX sessions_user_id_idx ON sessions (user_id);
CREATE INDEX sessions_expires_at_idx ON sessions (expires_at);
