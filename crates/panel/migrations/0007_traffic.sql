-- What was counted of sites and mail domains, by day (UTC), and how far the counts of each share's logs are added.
CREATE TABLE traffic (site TEXT NOT NULL, day TEXT NOT NULL, requests INTEGER NOT NULL, messages INTEGER NOT NULL, sent INTEGER NOT NULL,
  received INTEGER NOT NULL, PRIMARY KEY (site, day)) STRICT, WITHOUT ROWID;
CREATE TABLE traffic_mark (source TEXT NOT NULL, stream TEXT NOT NULL, upto INTEGER NOT NULL, PRIMARY KEY (source, stream)) STRICT, WITHOUT ROWID;
