-- +goose Up
-- What the VMs of the organisation may reach, as JSON (internal/egress.Policy). NULL: what the server permits.
ALTER TABLE organisations ADD COLUMN egress TEXT;

-- +goose Down
SELECT 1;
