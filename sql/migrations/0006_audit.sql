-- Where a session was begun, and what was done to an account.
-- depends: 0001_users

-- NULL: begun before this was noted, or not known
ALTER TABLE sessions
    ADD COLUMN user_agent text CONSTRAINT sessions_user_agent_check CHECK (octet_length(user_agent) <= 512),
    ADD COLUMN network text CONSTRAINT sessions_network_check CHECK (octet_length(network) <= 64);

-- One row for each change.  file_id is no foreign key: the trail outlives what it tells of.  There is no index by time:
-- ids grow with it, so the oldest rows are the first of the primary key.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY CONSTRAINT audit_pkey PRIMARY KEY,
    user_id uuid NOT NULL CONSTRAINT audit_user_id_fkey REFERENCES users ON DELETE CASCADE,
    at timestamptz NOT NULL DEFAULT now(),
    action text NOT NULL CONSTRAINT audit_action_check CHECK (octet_length(action) BETWEEN 1 AND 64),
    outcome text NOT NULL CONSTRAINT audit_outcome_check CHECK (outcome IN ('ok', 'refused')),
    session_id uuid,
    network text,
    request_id text,
    file_id uuid,
    path text COLLATE "C",
    details jsonb CONSTRAINT audit_details_check CHECK (octet_length(details::text) <= 16384)
);
CREATE INDEX audit_user_id_id_idx ON audit (user_id, id);
