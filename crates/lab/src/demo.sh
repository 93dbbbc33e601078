# A customer's wiki: a copy of Debian's DokuWiki in a site of an account, owned by the account.
# Arguments: the account's home, the site's host name.
set -eu
home=$1 site=$1/sites/$2 id=$(stat -c %u "$1")
cp -rL /usr/share/dokuwiki/. "$site/"
rm -rf "$site/data" "$site/conf"
cp -r /var/lib/dokuwiki/data "$site/data"
cp -rL /etc/dokuwiki/. "$site/conf"
cat > "$site/inc/preload.php" <<'PHP'
<?php
define('DOKU_INC', dirname(__DIR__) . '/');
define('DOKU_CONF', DOKU_INC . 'conf/');
PHP
cat > "$site/conf/local.php" <<'PHP'
<?php
$conf['title'] = 'A wiki on a cluster';
$conf['license'] = '';
$conf['savedir'] = './data';
$conf['useacl'] = 0;
PHP
cat > "$site/data/pages/start.txt" <<'WIKI'
====== Hello ======
Every node of the cluster serves this page. Edit it: the next node shows what you wrote.
WIKI
chown -R "$id:$id" "$site"
