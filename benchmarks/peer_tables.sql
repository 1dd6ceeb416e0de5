-- The same read models for all peers: fewer columns than ours, no foreign keys, no index but the
-- keys, and one row for each book instead of one for each cycle, so that they have less to do.
CREATE TABLE read_users (
    user_id uuid PRIMARY KEY, username text, email text, failed_login_attempts int NOT NULL,
    last_login timestamptz, created_at timestamptz, updated_at timestamptz
);
CREATE TABLE read_api_keys (
    key_id uuid PRIMARY KEY, user_id uuid, name text, key_hash text, requests_count bigint NOT NULL,
    last_used_at timestamptz, created_at timestamptz
);
CREATE TABLE read_orders (
    order_id uuid PRIMARY KEY, user_id uuid, token text, action text, order_type text,
    quantity numeric, amount numeric, price numeric, filled_quantity numeric NOT NULL,
    notional numeric NOT NULL, fees numeric NOT NULL, status text, venue_order_id text,
    failed_reason text, created_at timestamptz, updated_at timestamptz
);
CREATE TABLE read_positions (
    user_id uuid, token text, size numeric NOT NULL, cost numeric NOT NULL,
    realized_pnl numeric NOT NULL, fees numeric NOT NULL, updated_at timestamptz,
    PRIMARY KEY (user_id, token)
);
CREATE TABLE read_audit_logs (
    log_id uuid PRIMARY KEY, at timestamptz, event_type text, user_id uuid, ip_address text,
    resource text, action text, success boolean, details json, request_id text
);
CREATE TABLE read_marks (token text PRIMARY KEY, price numeric, marked_at timestamptz);
