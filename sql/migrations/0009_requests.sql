-- Changes that a client may ask for again under the same key: the first one is carried out, the others get its result.
-- depends: 0001_users

-- Written in the transaction of the change, so that one is never there without the other: the key first, for which all
-- others wait, the result last; nobody else ever sees a row without a result.  Of the key there is only a digest.
CREATE TABLE requests (
    user_id uuid NOT NULL CONSTRAINT requests_user_id_fkey REFERENCES users ON DELETE CASCADE,
    key text COLLATE "C" NOT NULL CONSTRAINT requests_key_check CHECK (octet_length(key) BETWEEN 1 AND 255),
    fingerprint bytea NOT NULL CONSTRAINT requests_fingerprint_check CHECK (octet_length(fingerprint) = 32),
    result text,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT requests_pkey PRIMARY KEY (user_id, key)
) WITH (fillfactor = 70); -- each row is updated once: leave room for HOT updates
CREATE INDEX requests_created_at_idx ON requests (created_at);
