DROP TABLE audit;
ALTER TABLE sessions DROP COLUMN network, DROP COLUMN user_agent;
