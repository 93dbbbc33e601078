//! The OpenAPI document, made from the same table as the router.

use super::{Answer, Described, ROOT, Route, problem, routes};
use axum::Json;
use axum::http::StatusCode;
use std::collections::BTreeMap;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{
    HttpMethod, Operation, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathsBuilder,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ArrayBuilder, ComponentsBuilder, ContentBuilder, Header, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder,
    PathItem, Ref, RefOr, Required, Response, ResponseBuilder, Schema, Type,
};

/// The document.
pub fn document() -> OpenApi {
    let mut schemas: BTreeMap<String, RefOr<Schema>> = BTreeMap::new();
    let mut paths = PathsBuilder::new();
    schemas.extend(Described::of::<problem::Content>().schemas);
    for route in routes() {
        paths = paths.path(format!("{ROOT}{}", route.path), PathItem::new(route.method.clone(), operation(&route)));
        schemas.extend(route.body.into_iter().flat_map(|body| body.schemas));
        match route.answer {
            Answer::One(described) | Answer::Page(described) | Answer::Task(described) => {
                schemas.extend(described.schemas);
            }
            Answer::Empty | Answer::Json => {}
        }
    }
    let bearer = SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build());
    let components = ComponentsBuilder::new().schemas_from_iter(schemas).security_scheme("token", bearer);
    let info = InfoBuilder::new()
        .title("Phalanx")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(
            "Each resource has an ETag; PATCH and DELETE take If-Match. POST takes an Idempotency-Key. Lists are answered as \
             {\"items\": […], \"next_cursor\": …}. Errors are problems of RFC 9457 with a hint how to mend them.",
        ))
        .build();
    OpenApiBuilder::new()
        .info(info)
        .paths(paths)
        .components(Some(components.build()))
        .security(Some([SecurityRequirement::new("token", Vec::<String>::new())]))
        .build()
}

fn operation(route: &Route) -> Operation {
    let resource = route.path.split('/').nth(1).unwrap_or_default();
    let mut operation = OperationBuilder::new().summary(Some(route.summary)).tag(resource);
    for parameter in parameters(route) {
        operation = operation.parameter(parameter);
    }
    if let Some(body) = &route.body {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(&body.name))).build();
        operation =
            operation.request_body(Some(RequestBodyBuilder::new().content("application/json", content).build()));
    }
    if matches!(route.answer, Answer::Task(_)) {
        let nothing = ResponseBuilder::new().description("Done: there was nothing to wait for");
        operation = operation.response(StatusCode::NO_CONTENT.as_str(), nothing);
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new()
        .description("Refused or failed, with a hint how to mend it (RFC 9457)")
        .content("application/problem+json", problem);
    operation.response(route.success.as_str(), answer(route)).response("default", problem).build()
}

fn parameters(route: &Route) -> Vec<Parameter> {
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let mut all = Vec::new();
    for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        all.push(parameter.schema(Some(text())).build());
    }
    for (name, description) in route.query {
        let kind = match *name {
            "limit" | "after" | "deadline_s" => Type::Integer,
            "follow" | "force" | "anyway" | "sites" | "mailboxes" => Type::Boolean,
            _ => Type::String,
        };
        let parameter =
            ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query).description(Some(*description));
        all.push(parameter.schema(Some(ObjectBuilder::new().schema_type(kind))).build());
    }
    let header = match route.method {
        HttpMethod::Post => {
            Some(("Idempotency-Key", "1 to 200 characters, such as a UUID: the same request again is done once."))
        }
        HttpMethod::Patch | HttpMethod::Delete => {
            Some(("If-Match", "The ETag that is to be changed; 412 where it is another by now. Without it, any."))
        }
        _ => None,
    };
    if let Some((name, description)) = header {
        let parameter =
            ParameterBuilder::new().name(name).parameter_in(ParameterIn::Header).description(Some(description));
        all.push(parameter.schema(Some(text())).build());
    }
    all
}

/// The successful answer of an operation.
fn answer(route: &Route) -> Response {
    let json = |schema: RefOr<Schema>| ContentBuilder::new().schema(Some(schema)).build();
    let named = |described: &Described| RefOr::from(Ref::from_schema_name(&described.name));
    let (mut response, content) = match &route.answer {
        Answer::Empty => (ResponseBuilder::new().description("Done"), None),
        Answer::One(described) => (ResponseBuilder::new().description(&described.name), Some(json(named(described)))),
        Answer::Page(described) => {
            let description = format!("A page of the list; each is a {}", described.name);
            (ResponseBuilder::new().description(description), Some(json(page_of(named(described)))))
        }
        Answer::Task(described) => {
            let description = "It goes on in the background: ask for the task";
            (ResponseBuilder::new().description(description), Some(json(named(described))))
        }
        Answer::Json => (ResponseBuilder::new().description("JSON"), Some(json(ObjectBuilder::new().build().into()))),
    };
    if let Some(content) = content {
        response = response.content("application/json", content);
    }
    if route.path == "/events" {
        let frames =
            ObjectBuilder::new().schema_type(Type::String).description(Some("data: one Event a frame")).build();
        response = response.content("text/event-stream", json(frames.into()));
    }
    let is_made = route.success == StatusCode::CREATED && !route.path.ends_with("/join-token");
    if is_made || route.success == StatusCode::ACCEPTED {
        response = response.header("Location", header("Where it is."));
    }
    if is_versioned(route) {
        response = response.header("ETag", header("Its version, for If-Match."));
    }
    response.build()
}

/// Whether the answer is one stored thing: it has a version. Orders and what is read from nodes have none.
fn is_versioned(route: &Route) -> bool {
    let is_one = matches!(route.answer, Answer::One(_)) && route.success != StatusCode::ACCEPTED;
    let is_order = ["/join-token", "/rollback", "/reconcile", "/log", "/mail-log", "/mail-trace"]
        .iter()
        .any(|end| route.path.ends_with(end))
        || route.path.starts_with("/queues");
    is_one && !is_order && !matches!(route.path, "/status" | "/tasks/{id}")
}

fn header(description: &str) -> Header {
    let text = ObjectBuilder::new().schema_type(Type::String);
    HeaderBuilder::new().schema(text).description(Some(description)).build()
}

fn page_of(item: RefOr<Schema>) -> RefOr<Schema> {
    let cursor = ObjectBuilder::new()
        .schema_type(utoipa::openapi::schema::SchemaType::from_iter([Type::String, Type::Null]))
        .description(Some("Send it as cursor to get the next page; null on the last."));
    let page = ObjectBuilder::new()
        .property("items", ArrayBuilder::new().items(item))
        .required("items")
        .property("next_cursor", cursor)
        .required("next_cursor");
    page.build().into()
}

pub(super) async fn serve() -> Json<OpenApi> {
    Json(document())
}
