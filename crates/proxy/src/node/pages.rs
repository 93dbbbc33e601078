//! The proxy's own pages: what a visitor sees when no site can answer. Small, without outside resources, readable in the dark, and
//! with words that say what a visitor or an owner can do. They never show what a request held.

/// What a page is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Page {
    /// Nothing is served under this host name.
    UnknownHost,
    /// The site's account is suspended.
    Suspended,
    /// The site has too many requests under way.
    Busy,
    /// The site could not be woken or reached.
    Unreachable,
    /// The site's server gave no proper answer.
    BadAnswer,
    /// The site's server took too long.
    TooSlow,
    /// This server can't look anything up now.
    NotReady,
    /// The request itself is at fault.
    BadRequest(u16, &'static str),
}

impl Page {
    /// The status code it goes with.
    pub fn status(self) -> u16 {
        match self {
            Page::UnknownHost => 404,
            Page::Suspended | Page::Busy | Page::Unreachable | Page::NotReady => 503,
            Page::BadAnswer => 502,
            Page::TooSlow => 504,
            Page::BadRequest(status, _) => status,
        }
    }

    /// The page as HTML.
    pub fn html(self) -> String {
        let (title, text, hint) = self.words();
        let status = self.status();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta name=\"robots\" content=\"noindex\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
             <main>\n<p class=\"code\">{status}</p>\n<h1>{title}</h1>\n<p>{text}</p>\n<p class=\"hint\">{hint}</p>\n\
             </main>\n</html>\n"
        )
    }

    fn words(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Page::UnknownHost => (
                "No site lives here",
                "The address leads to this server, but no site is set up under this name.",
                "If you followed a link, it may be misspelt. If this is your site, check its host names in the control panel; \
                 a new one answers within seconds.",
            ),
            Page::Suspended => (
                "This site is suspended",
                "Its owner's account is suspended, so the site is not shown for now. Nothing of it was deleted.",
                "If this is your site, please ask your hosting provider.",
            ),
            Page::Busy => (
                "This site is very busy",
                "It has as many requests under way as it may have at a time.",
                "Please try again in a few seconds.",
            ),
            Page::Unreachable => (
                "This site is not awake",
                "Its server could not be started or reached in time.",
                "Please try again in a few seconds. If this is your site and it stays so, look at its error log.",
            ),
            Page::BadAnswer => (
                "This site gave no proper answer",
                "Its server ended the connection, or answered with something that is not HTTP.",
                "Please try again. If this is your site, look at its error log.",
            ),
            Page::TooSlow => (
                "This site took too long",
                "Its server accepted the request, but gave no answer in time.",
                "Please try again later. If this is your site, look for scripts that wait or loop.",
            ),
            Page::NotReady => (
                "This server is not ready",
                "It can't look up its sites at the moment.",
                "Please try again in a few seconds.",
            ),
            Page::BadRequest(_, why) => {
                ("This request can't be answered", why, "If you came here with an ordinary browser, please try again.")
            }
        }
    }
}

const STYLE: &str = ":root{color-scheme:light dark}\
body{margin:0;min-height:100vh;display:grid;place-items:center;font:1.05rem/1.6 system-ui,sans-serif;\
background:#f6f7f9;color:#1d2430}\
main{max-width:32rem;margin:1rem;padding:2.5rem 3rem;background:#fff;border-radius:1rem;border-top:.35rem solid #3d6ae0;\
box-shadow:0 1px 2px #0001,0 12px 32px #0000000f}\
.code{margin:0;font-weight:600;letter-spacing:.08em;color:#3d6ae0}h1{margin:.2rem 0 1rem;font-size:1.6rem;line-height:1.25}\
p{margin:.6rem 0}.hint{color:#5a6475}\
@media(prefers-color-scheme:dark){body{background:#12151b;color:#e7eaf0}main{background:#1b2029}.hint{color:#9aa4b5}\
.code{color:#8eacf8}}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_says_its_status_and_loads_nothing() {
        for page in [
            Page::UnknownHost,
            Page::Suspended,
            Page::Busy,
            Page::Unreachable,
            Page::BadAnswer,
            Page::TooSlow,
            Page::NotReady,
            Page::BadRequest(400, "the request line is malformed"),
        ] {
            let html = page.html();
            assert!(html.contains(&format!(">{}<", page.status())) && html.len() < 3_000, "{page:?}");
            assert!(!html.contains("http://") && !html.contains("src=") && !html.contains("url("), "{page:?}");
        }
    }
}
