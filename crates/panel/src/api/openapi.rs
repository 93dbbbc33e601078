//! The OpenAPI document, made from the same table as the router.

use super::{ROOT, Route, problem, routes};
use crate::task::{Task, TaskState};
use axum::Json;
use utoipa::openapi::path::{Operation, OperationBuilder, ParameterBuilder, ParameterIn, PathsBuilder};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, InfoBuilder, ObjectBuilder, OpenApi, OpenApiBuilder, PathItem, Ref, Required,
    ResponseBuilder, Type,
};

/// The document.
pub fn document() -> OpenApi {
    let mut components = ComponentsBuilder::new()
        .schema_from::<problem::Content>()
        .schema_from::<problem::FieldError>()
        .schema_from::<Task>()
        .schema_from::<TaskState>()
        .security_scheme("token", SecurityScheme::Http(HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build()));
    let mut paths = PathsBuilder::new();
    for route in routes() {
        if let Some((name, schema)) = &route.body {
            components = components.schema(name, schema.clone());
        }
        paths = paths.path(format!("{ROOT}{}", route.path), PathItem::new(route.method.clone(), operation(&route)));
    }
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
    let text = || ObjectBuilder::new().schema_type(Type::String);
    let mut operation = OperationBuilder::new().summary(Some(route.summary)).tag(resource);
    for name in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Path).required(Required::True);
        operation = operation.parameter(parameter.schema(Some(text())));
    }
    for (name, description) in route.query {
        let parameter =
            ParameterBuilder::new().name(*name).parameter_in(ParameterIn::Query).description(Some(*description));
        operation = operation.parameter(parameter.schema(Some(text())));
    }
    if let Some((name, _)) = &route.body {
        let content = ContentBuilder::new().schema(Some(Ref::from_schema_name(name))).build();
        operation =
            operation.request_body(Some(RequestBodyBuilder::new().content("application/json", content).build()));
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let problem = ResponseBuilder::new().description("Refused or failed").content("application/problem+json", problem);
    operation
        .response(route.success.as_str(), ResponseBuilder::new().description("Done"))
        .response("default", problem)
        .build()
}

pub(super) async fn serve() -> Json<OpenApi> {
    Json(document())
}
